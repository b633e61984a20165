from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finetune.debiasing import (
    doubly_robust_loss,
    imputation_loss,
    inverse_weights,
    ips_loss,
    snips_loss,
)

ERROR_B = torch.tensor([1.0, 2.0, 6.0])
PROPENSITY_B = torch.tensor([0.5, 0.25, 0.1])


def test_the_losses_are_their_formulas() -> None:
    weighted = 1 / 0.5 + 2 / 0.25 + 6 / 0.1
    assert ips_loss(ERROR_B, PROPENSITY_B, num_pairs=20).item() == pytest.approx(weighted / 20)
    assert snips_loss(ERROR_B, PROPENSITY_B).item() == pytest.approx(weighted / (2 + 4 + 10))
    clipped = ips_loss(ERROR_B, PROPENSITY_B, num_pairs=20, max_weight=5)
    assert clipped.item() == pytest.approx((2 + 8 + 30) / 20)
    found = doubly_robust_loss(
        ERROR_B,
        PROPENSITY_B,
        imputed_error_B=torch.tensor([1.0, 1.0, 1.0]),
        imputed_error_A=torch.tensor([1.0, 3.0]),
        num_pairs=20,
    )
    assert found.item() == pytest.approx(2 + (0 / 0.5 + 1 / 0.25 + 5 / 0.1) / 20)
    imputation = imputation_loss(torch.zeros(3), ERROR_B, PROPENSITY_B, num_pairs=20)
    assert imputation.item() == pytest.approx((1 / 0.5 + 4 / 0.25 + 36 / 0.1) / 20)


def test_with_even_propensities_all_are_the_plain_mean() -> None:
    even_B = torch.full((3,), 0.25)
    assert snips_loss(ERROR_B, even_B).item() == pytest.approx(3.0)
    assert ips_loss(ERROR_B, even_B, num_pairs=12).item() == pytest.approx(3.0)


def test_snips_moves_with_a_constant_and_ips_does_not() -> None:
    gap = snips_loss(ERROR_B + 5, PROPENSITY_B) - snips_loss(ERROR_B, PROPENSITY_B)
    assert gap.item() == pytest.approx(5.0)
    gap = ips_loss(ERROR_B + 5, PROPENSITY_B, num_pairs=20) - ips_loss(
        ERROR_B, PROPENSITY_B, num_pairs=20
    )
    assert gap.item() == pytest.approx(5 * 16 / 20)


def test_a_perfect_imputation_makes_the_propensities_idle() -> None:
    error_A = torch.tensor([1.0, 2.0, 6.0, 3.0])
    found = [
        doubly_robust_loss(
            ERROR_B,
            propensity_B,
            imputed_error_B=ERROR_B,
            imputed_error_A=error_A,
            num_pairs=4,
        ).item()
        for propensity_B in (PROPENSITY_B, PROPENSITY_B.flip(0))
    ]
    assert found == [3.0, 3.0]


@pytest.fixture
def world() -> tuple[Tensor, Tensor]:
    """Errors of all pairs, and propensities that hide the large ones."""
    generator = torch.Generator().manual_seed(3)
    error_A = torch.rand(400, generator=generator) * 4
    return error_A, torch.sigmoid(1 - error_A)


def over_draws(
    world: tuple[Tensor, Tensor], loss: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Mean of a loss over draws of what is observed, and its standard error."""
    _, propensity_A = world
    generator = torch.Generator().manual_seed(5)
    draws = torch.stack(
        [
            loss(torch.rand(len(propensity_A), generator=generator) < propensity_A)
            for _ in range(2000)
        ]
    )
    return draws.mean().item(), draws.std().item() / len(draws) ** 0.5


def test_ips_is_unbiased_and_the_plain_mean_is_not(world: tuple[Tensor, Tensor]) -> None:
    error_A, propensity_A = world
    truth = error_A.mean().item()
    mean, se = over_draws(
        world, lambda o: ips_loss(error_A[o], propensity_A[o], num_pairs=len(error_A))
    )
    assert mean == pytest.approx(truth, abs=4 * se)
    plain, plain_se = over_draws(world, lambda o: error_A[o].mean())
    assert plain < truth - 50 * plain_se
    clipped, clipped_se = over_draws(
        world,
        lambda o: ips_loss(error_A[o], propensity_A[o], num_pairs=len(error_A), max_weight=3),
    )
    assert clipped < truth - 50 * clipped_se
    assert clipped_se < se


def test_snips_is_closer_to_the_truth_than_ips(world: tuple[Tensor, Tensor]) -> None:
    error_A, propensity_A = world
    truth = error_A.mean().item()
    snips, snips_se = over_draws(world, lambda o: snips_loss(error_A[o], propensity_A[o]))
    _, ips_se = over_draws(
        world, lambda o: ips_loss(error_A[o], propensity_A[o], num_pairs=len(error_A))
    )
    assert snips_se < ips_se
    assert snips == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("right", ["propensities", "imputation"])
def test_doubly_robust_needs_one_of_the_two_to_be_right(
    world: tuple[Tensor, Tensor], right: str
) -> None:
    error_A, propensity_A = world
    if right == "propensities":
        imputed_A, given_A = torch.full_like(error_A, 1.0), propensity_A
    else:
        imputed_A, given_A = error_A, torch.full_like(error_A, 0.5)
    mean, se = over_draws(
        world,
        lambda o: doubly_robust_loss(
            error_A[o],
            given_A[o],
            imputed_error_B=imputed_A[o],
            imputed_error_A=imputed_A,
            num_pairs=len(error_A),
        ),
    )
    assert mean == pytest.approx(error_A.mean().item(), abs=4 * se + 1e-5)


def test_doubly_robust_varies_less_than_ips_where_the_imputation_is_good(
    world: tuple[Tensor, Tensor],
) -> None:
    error_A, propensity_A = world
    imputed_A = error_A + 0.3
    _, dr_se = over_draws(
        world,
        lambda o: doubly_robust_loss(
            error_A[o],
            propensity_A[o],
            imputed_error_B=imputed_A[o],
            imputed_error_A=imputed_A,
            num_pairs=len(error_A),
        ),
    )
    _, ips_se = over_draws(
        world, lambda o: ips_loss(error_A[o], propensity_A[o], num_pairs=len(error_A))
    )
    assert dr_se < ips_se / 3


def test_the_gradient_of_the_doubly_robust_square_points_to_the_corrected_label() -> None:
    """With e = (y^ - y)² and ê = (y^ - y~)², a pair's gradient is 2 (y^ - y~ + (y~ - y) / p)."""
    prediction_A = torch.tensor([0.5, 2.0], requires_grad=True)
    imputed_A, label_B = torch.tensor([1.0, 1.5]), torch.tensor([3.0])
    imputed_error_A = (prediction_A - imputed_A).square()
    loss = doubly_robust_loss(
        (prediction_A[:1] - label_B).square(),
        torch.tensor([0.25]),
        imputed_error_B=imputed_error_A[:1],
        imputed_error_A=imputed_error_A,
        num_pairs=2,
    )
    (found_A,) = torch.autograd.grad(loss, prediction_A)
    expected_A = torch.tensor([2 * (0.5 - 1.0 + (1.0 - 3.0) / 0.25), 2 * (2.0 - 1.5)]) / 2
    torch.testing.assert_close(found_A, expected_A)


@pytest.mark.parametrize("bad", [0.0, -1.0, 1.1, float("nan")])
def test_every_loss_refuses_what_is_no_propensity(bad: float) -> None:
    error_B, propensity_B = torch.ones(2), torch.tensor([0.5, bad])
    for loss in (
        lambda: ips_loss(error_B, propensity_B, num_pairs=4),
        lambda: snips_loss(error_B, propensity_B),
        lambda: imputation_loss(error_B, error_B, propensity_B, num_pairs=4),
        lambda: doubly_robust_loss(
            error_B,
            propensity_B,
            imputed_error_B=error_B,
            imputed_error_A=error_B,
            num_pairs=4,
        ),
    ):
        with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
            loss()


def test_other_bad_input_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="found none"):
        ips_loss(torch.tensor([]), torch.tensor([]), num_pairs=4)
    with pytest.raises(ValueError, match="unreduced"):
        ips_loss(torch.tensor(1.0), PROPENSITY_B, num_pairs=4)
    with pytest.raises(ValueError, match="NaN"):
        snips_loss(torch.tensor([1.0, float("nan"), 0.0]), PROPENSITY_B)
    with pytest.raises(ValueError, match="num_pairs"):
        ips_loss(ERROR_B, PROPENSITY_B, num_pairs=0)
    with pytest.raises(ValueError, match="max_weight"):
        inverse_weights(PROPENSITY_B, max_weight=0.5)
    with pytest.raises(ValueError, match="imputed_error_A"):
        doubly_robust_loss(
            ERROR_B,
            PROPENSITY_B,
            imputed_error_B=ERROR_B,
            imputed_error_A=torch.tensor([]),
            num_pairs=4,
        )
