"""The pooled user encoder: a function of the set alone, and of what is in it."""

import pytest
import torch
from torch import nn

from pretrain.set_encoder import SetPool
from pretrain.user_encoder import UserEncoderConfig

WIDTH = 8


@pytest.fixture
def encoder() -> SetPool:
    torch.manual_seed(0)
    made = SetPool(WIDTH, heads=2, dropout=0.5)
    for parameter in made.parameters():  # away from the zeros and small numbers of the start
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def test_order_and_padding_change_nothing(encoder: SetPool) -> None:
    events = torch.randn(1, 4, WIDTH)
    mask = torch.ones(1, 4, dtype=torch.bool)
    expected = encoder(events, mask_BL=mask)
    shuffled = encoder(events[:, [2, 0, 3, 1]], mask_BL=mask)
    torch.testing.assert_close(shuffled, expected)
    padded = torch.cat([events, 100 * torch.randn(1, 3, WIDTH)], dim=1)
    padding = torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(encoder(padded, mask_BL=padding), expected)


def test_attention_is_that_of_a_plain_twin(encoder: SetPool) -> None:
    events = torch.randn(3, WIDTH)
    mean = events.mean(0)
    asked = encoder.start_D + mean
    query = encoder.query(encoder.norm_in(asked))
    key, value = encoder.key_value(encoder.norm_in(events)).chunk(2, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weight = (key[:, head] @ query[head] / 4**0.5).softmax(0)
        heads.append(weight @ value[:, head])
    hidden = asked + encoder.attended(torch.cat(heads))
    hidden = hidden + encoder.mlp(hidden)
    expected = encoder.mean_weight * mean + encoder.out(encoder.norm_out(hidden))
    found = encoder(events[None], mask_BL=torch.ones(1, 3, dtype=torch.bool))[0]
    torch.testing.assert_close(found, expected / expected.norm())


def test_an_empty_history_is_a_user_too_and_gradients_stay_finite() -> None:
    torch.manual_seed(0)
    encoder = SetPool(WIDTH, heads=2, dropout=0.0)
    events = torch.randn(2, 3, WIDTH, requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    user = encoder(events, mask_BL=mask)
    user.square().sum().backward()
    torch.testing.assert_close(user.norm(dim=1), torch.ones(2))
    assert events.grad is not None
    assert events.grad.isfinite().all()
    assert events.grad[0, 1:].eq(0).all()


def test_a_question_needs_a_set() -> None:
    with pytest.raises(ValueError, match="order must be 'set'"):
        UserEncoderConfig(pooling="question")


def test_training_starts_from_the_mean() -> None:
    torch.manual_seed(0)
    events = torch.randn(2, 4, WIDTH)
    mask = torch.tensor([[True] * 4, [False] * 4])
    pooled = SetPool(WIDTH, heads=2, dropout=0.0)(events, mask_BL=mask)
    mean = torch.nn.functional.normalize(events[0].mean(0), dim=0)
    torch.testing.assert_close(pooled[0], mean, atol=0.02, rtol=0)
    assert pooled[1].norm().item() == pytest.approx(1)
