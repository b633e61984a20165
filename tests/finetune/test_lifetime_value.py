import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, LogNormal

from finetune.lifetime_value import gini, normalised_gini, ziln_log_mean, ziln_loss, ziln_mean
from finetune.metrics import auc


def softplus_inverse(std: float) -> float:
    return float(np.log(np.expm1(std - 1e-3)))


@pytest.fixture
def output_B3() -> torch.Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_likelihood_of_a_mixture(output_B3: torch.Tensor) -> None:
    value_B = torch.rand(40, generator=torch.Generator().manual_seed(1)) * 100
    value_B[::3] = 0
    bought_B = (value_B > 0).float()
    std_B = torch.nn.functional.softplus(output_B3[:, 2]) + 1e-3
    lognormal = LogNormal(output_B3[:, 1], std_B)
    expected_B = Bernoulli(logits=output_B3[:, 0]).log_prob(bought_B) + torch.where(
        bought_B > 0, lognormal.log_prob(value_B.clamp(min=1e-9)), torch.zeros(40)
    )
    torch.testing.assert_close(ziln_loss(output_B3, value_B), -expected_B.mean())


def test_the_mean_is_chance_times_the_lognormal_mean(output_B3: torch.Tensor) -> None:
    std_B = torch.nn.functional.softplus(output_B3[:, 2]) + 1e-3
    expected_B = torch.sigmoid(output_B3[:, 0]) * LogNormal(output_B3[:, 1], std_B).mean
    torch.testing.assert_close(ziln_mean(output_B3), expected_B)


def test_the_log_mean_ranks_where_the_mean_overflows() -> None:
    output_B3 = torch.tensor([[0.0, 100.0, 0.0], [1.0, 100.0, 0.0]])
    assert torch.isinf(ziln_mean(output_B3)).all()
    log_mean_B = ziln_log_mean(output_B3)
    assert log_mean_B[0] < log_mean_B[1]


def test_the_loss_is_least_at_the_parameters_that_drew_the_values() -> None:
    generator = torch.Generator().manual_seed(2)
    bought_B = torch.rand(20_000, generator=generator) < 0.3
    value_B = torch.exp(2 + 0.8 * torch.randn(20_000, generator=generator)) * bought_B
    output_3 = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.LBFGS([output_3], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = ziln_loss(output_3.expand(20_000, 3), value_B)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = output_3.detach()
    assert torch.sigmoid(found[0]).item() == pytest.approx(0.3, abs=0.01)
    assert found[1].item() == pytest.approx(2.0, abs=0.03)
    assert found[2].item() == pytest.approx(softplus_inverse(0.8), abs=0.03)
    mean = ziln_mean(found[None]).item()
    assert mean == pytest.approx(value_B.mean().item(), rel=0.03)


def test_a_batch_without_a_buyer_has_finite_gradients_of_the_chance_alone() -> None:
    output_B3 = torch.zeros(4, 3, requires_grad=True)
    ziln_loss(output_B3, torch.zeros(4)).backward()
    assert output_B3.grad is not None
    assert torch.isfinite(output_B3.grad).all()
    assert (output_B3.grad[:, 0] > 0).all()
    assert (output_B3.grad[:, 1:] == 0).all()


def test_gini_is_twice_the_area_below_the_diagonal() -> None:
    # Lorenz curve of 0, 1, 3 in this order: 0, 0, 1/4, 1; area under it (0 + 1/8 + 5/8) / 3.
    area = (0 + 1 / 8 + 5 / 8) / 3
    assert gini(np.array([3.0, 0.0, 1.0]), np.array([9.0, 1.0, 5.0])) == pytest.approx(1 - 2 * area)


def test_the_gini_of_ties_is_the_mean_over_their_orders() -> None:
    value_N = np.array([2.0, 0.0, 5.0, 1.0])
    orders = [np.array([1.0, 1 + a, 1 + b, 4.0]) for a, b in ((0.1, 0.2), (0.2, 0.1))]
    orders += [np.array([1 + a, 1.0, 1 + b, 4.0]) for a, b in ((0.1, 0.2), (0.2, 0.1))]
    orders += [np.array([1 + a, 1 + b, 1.0, 4.0]) for a, b in ((0.1, 0.2), (0.2, 0.1))]
    tied = gini(value_N, np.array([1.0, 1.0, 1.0, 4.0]))
    assert tied == pytest.approx(np.mean([gini(value_N, score_N) for score_N in orders]))


def test_normalised_gini_is_one_at_best_minus_one_at_worst_and_nothing_by_chance() -> None:
    value_N = np.random.default_rng(0).lognormal(size=500)
    assert normalised_gini(value_N, 3 * value_N + 1) == pytest.approx(1.0)
    assert normalised_gini(value_N, -value_N) == pytest.approx(-1.0)
    assert normalised_gini(value_N, np.ones(500)) == pytest.approx(0.0, abs=1e-12)


def test_normalised_gini_of_clicks_is_twice_auc_less_one() -> None:
    rng = np.random.default_rng(1)
    label_N = (rng.random(300) < 0.2).astype(np.float64)
    score_N = np.round(rng.random(300) + 0.3 * label_N, 1)
    assert normalised_gini(label_N, score_N) == pytest.approx(2 * auc(label_N, score_N) - 1)


def test_values_without_a_difference_have_no_gini() -> None:
    assert np.isnan(gini(np.zeros(3), np.arange(3.0)))
    assert np.isnan(normalised_gini(np.ones(3), np.arange(3.0)))


@pytest.mark.parametrize("values", [[1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_what_is_no_value_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="value_B"):
        ziln_loss(torch.zeros(len(values), 3), torch.tensor(values))
    with pytest.raises(ValueError, match="value_N"):
        gini(np.array(values), np.zeros(len(values)))


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="score_N"):
        gini(np.ones(2), np.array([1.0, np.nan]))
