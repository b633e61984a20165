"""Losses against closed forms and slow twins."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.losses import (
    corrected_losses,
    info_nce_losses,
    log_inclusion_probability,
    prefix,
    ramped,
    sigmoid_losses,
)
from pretrain.objective import LossConfig, hidden_ids

NEGATIVES = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, float("-inf")]])
POSITIVE = torch.tensor([1.5, -0.5])


def test_info_nce_is_cross_entropy_over_the_allowed_candidates() -> None:
    logits = torch.cat([POSITIVE[:, None], NEGATIVES], dim=1)
    expected = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64), reduction="none")
    found = info_nce_losses(POSITIVE, NEGATIVES.logsumexp(1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("losses", [info_nce_losses, corrected_losses])
def test_a_row_without_negatives_costs_nothing_and_has_no_gradient(losses) -> None:  # noqa: ANN001
    positive = torch.tensor([0.3], requires_grad=True)
    negatives = torch.tensor([float("-inf")], requires_grad=True)
    loss = losses(positive, negatives)
    grads = torch.autograd.grad(loss.sum(), [positive, negatives])
    assert float(loss) == 0
    assert all(float(grad) == 0 for grad in grads)


def test_corrected_losses_are_the_papers_equation() -> None:
    """Draws with repetition, Q'(d) = Q(d) / (1 - Q(p)) and P with the mean over the draws."""
    num, q_target = 5, 0.2
    draws, q = torch.randn(num, generator=torch.Generator().manual_seed(0)), torch.rand(num) / 9
    q_prime = q / (1 - q_target)
    corrected = draws - q_prime.log()
    positive = torch.tensor(0.7)
    chance = positive.exp() / (positive.exp() + corrected.exp().mean())
    paper = -(1 - chance) * (positive.exp() / corrected.exp().sum()).log()
    # n Q' is the probability that stands in our sum; the paper's log has n more terms of weight 1.
    found = corrected_losses(positive[None], (draws - (num * q_prime).log()).logsumexp(0)[None])
    torch.testing.assert_close(found[0], paper - (1 - chance) * math.log(num))


def test_corrected_losses_have_the_gradient_of_the_full_softmax_where_nothing_is_sampled() -> None:
    scores = torch.randn(7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    full = F.cross_entropy(scores[None], torch.tensor([0]))
    corrected = corrected_losses(scores[:1], scores[1:].logsumexp(0)[None]).sum()
    expected, found = (torch.autograd.grad(one, scores)[0] for one in (full, corrected))
    torch.testing.assert_close(found, expected)


def sampled_gradient(form: str, *, trials: int, num_draws: int) -> tuple[torch.Tensor, ...]:
    """Mean gradient of a toy catalogue's scores over batches, and that of the full softmax."""
    generator = torch.Generator().manual_seed(3)
    num_items, target = 12, 11
    probability = torch.arange(num_items, 0, -1.0) ** 2
    probability = probability / probability.sum()
    scores = torch.randn(num_items, generator=generator)
    others = num_draws - 1
    drawn = torch.multinomial(probability, trials * others, replacement=True, generator=generator)
    there = torch.zeros(trials, num_items).scatter_(1, drawn.view(trials, others), 1.0)
    score = scores.expand(trials, -1).clone().requires_grad_()
    draws = others if form == "corrected" else num_draws
    log_q = log_inclusion_probability(probability, num_draws=draws)
    logits = (score - log_q).masked_fill(there == 0, float("-inf"))
    logits = logits.index_fill(1, torch.tensor([target]), float("-inf"))
    if form == "corrected":
        losses = corrected_losses(score[:, target], logits.logsumexp(1))
    else:
        losses = info_nce_losses(score[:, target] - log_q[target], logits.logsumexp(1))
    found = torch.autograd.grad(losses.sum(), score)[0].mean(0)
    full = scores.softmax(0) - F.one_hot(torch.tensor(target), num_items)
    return found, full


def test_for_a_rare_item_the_corrected_form_comes_closer_to_the_full_softmax() -> None:
    errors = {}
    for form in ("plain", "corrected"):
        found, full = sampled_gradient(form, trials=20_000, num_draws=8)
        errors[form] = float((found - full).norm() / full.norm())
    assert errors["corrected"] < 0.2 * errors["plain"]


def test_inclusion_probability_of_distinct_draws() -> None:
    probability = torch.tensor([0.5, 0.01, 0.0])
    found = log_inclusion_probability(probability, num_draws=torch.tensor(3))
    assert float(found[0]) == pytest.approx(math.log(1 - 0.5**3), rel=1e-5)
    assert float(found[1]) == pytest.approx(math.log(1 - 0.99**3), rel=1e-5)
    assert torch.isfinite(found).all()


def test_sigmoid_losses_are_siglips() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    labels = 2 * torch.eye(4) - 1
    expected = -F.logsigmoid(labels * logits).sum(1)
    off = logits.masked_fill(torch.eye(4, dtype=torch.bool), float("-inf"))
    found = sigmoid_losses(logits.diag(), F.softplus(off).sum(1))
    torch.testing.assert_close(found, expected)


def test_a_prefix_has_unit_length_and_the_whole_width_is_untouched() -> None:
    vectors = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert prefix(vectors, 8) is vectors
    short = prefix(vectors, 3)
    torch.testing.assert_close(short.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(short * vectors[:, :3].norm(dim=1)[:, None], vectors[:, :3])


def test_a_weight_is_constant_or_rises_to_its_value() -> None:
    assert [ramped(0.3, ramp_steps=0, step=step) for step in (0, 9)] == [0.3, 0.3]
    found = [ramped(0.4, ramp_steps=4, step=step) for step in range(6)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ids_are_hidden_by_share_and_step_alone(share: float) -> None:
    rows = torch.arange(20_000)
    hidden = hidden_ids(rows, step=5, share=share)
    assert float(hidden.double().mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(hidden[100:200], hidden_ids(rows[100:200], step=5, share=share))
    if 0 < share < 1:
        assert not torch.equal(hidden, hidden_ids(rows, step=6, share=share))


def test_a_bad_setting_names_itself() -> None:
    with pytest.raises(ValueError, match=r"logq must be in \[0, 1\], got 2.0"):
        LossConfig(logq=2.0)
    with pytest.raises(ValueError, match="pair_weight and pair_ramp_steps"):
        LossConfig(pair_weight=-1.0)
    with pytest.raises(ValueError, match=r"expected widths below model\.encoders\.width 8"):
        LossConfig(matryoshka={8: 1.0}).state(width=8, temperature=0.07)
