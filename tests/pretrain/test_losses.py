"""Losses against closed forms and slow twins."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.losses import (
    first_occurrences,
    log_inclusion_probability,
    pair_losses,
    positions_of,
    user_item_losses,
)
from pretrain.objective import LossConfig, hidden_ids


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_user_item_loss_is_the_sum_over_allowed_candidates() -> None:
    query, candidate = unit(3, 4, seed=0), unit(5, 4, seed=1)
    target = torch.tensor([1, 1, 4])
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0, [0, 3]] = True
    log_q, scale = torch.linspace(-3, -1, 5), torch.tensor(2.0)
    found = user_item_losses(
        query, candidate, target_P=target, excluded_PG=excluded, log_q_G=log_q, scale=scale
    )
    for row in range(3):
        terms = {
            column: math.exp(2 * float(query[row] @ candidate[column]) - float(log_q[column]))
            for column in range(5)
            if not excluded[row, column]
        }
        expected = -math.log(terms[int(target[row])] / sum(terms.values()))
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)


def test_an_excluded_candidate_gets_no_gradient_and_the_target_is_never_excluded() -> None:
    query, candidate = unit(1, 4, seed=0), unit(3, 4, seed=1).requires_grad_()
    excluded = torch.tensor([[True, True, False]])
    loss = user_item_losses(
        query, candidate, target_P=torch.tensor([0]), excluded_PG=excluded,
        log_q_G=torch.zeros(3), scale=torch.tensor(5.0),
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss.sum(), candidate)
    assert torch.isfinite(loss).all()
    assert grad[1].abs().sum() == 0
    assert grad[0].abs().sum() > 0
    assert grad[2].abs().sum() > 0


def test_inclusion_probability_of_distinct_draws() -> None:
    probability = torch.tensor([0.5, 0.01, 0.0])
    found = log_inclusion_probability(probability, num_draws=torch.tensor(3))
    assert float(found[0]) == pytest.approx(math.log(1 - 0.5**3), rel=1e-5)
    assert float(found[1]) == pytest.approx(math.log(1 - 0.99**3), rel=1e-5)
    assert torch.isfinite(found).all()


def test_pair_loss_is_clips() -> None:
    left, right, scale = unit(6, 4, seed=0), unit(6, 4, seed=1), torch.tensor(10.0)
    logits = scale * left @ right.T
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    found = pair_losses(left, left, right_PD=right, right_GD=right, own_P=labels, scale=scale)
    torch.testing.assert_close(found.mean(), expected)


def test_a_repeated_item_is_found_where_it_stands_first() -> None:
    rows = torch.tensor([7, 3, 7, 9, 3])
    assert first_occurrences(rows).tolist() == [0, 1, 0, 3, 1]
    assert positions_of(torch.tensor([[3, 8], [9, 7]]), rows_G=rows).tolist() == [[1, -1], [3, 0]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ids_are_hidden_by_share_and_step_alone(share: float) -> None:
    rows = torch.arange(20_000)
    hidden = hidden_ids(rows, step=5, share=share)
    assert float(hidden.double().mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(hidden[100:200], hidden_ids(rows[100:200], step=5, share=share))
    if 0 < share < 1:
        assert not torch.equal(hidden, hidden_ids(rows, step=6, share=share))


def test_a_bad_weight_names_itself() -> None:
    with pytest.raises(ValueError, match=r"logq in \[0, 1\], got 1.0, 0.1, 2.0"):
        LossConfig(logq=2.0)
