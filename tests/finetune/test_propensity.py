import pytest
import torch

from finetune.propensity import check_propensities, fit_logistic, naive_bayes


@pytest.mark.parametrize("values", [[0.5, 0.0], [0.5, -0.1], [0.5, 1.5], [0.5, float("nan")], []])
def test_what_is_no_propensity_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^shown: found"):
        check_propensities(torch.tensor(values), name="shown")


def test_naive_bayes_is_bayes_rule() -> None:
    # 10 of 100 pairs observed: 2 with label 0, 8 with label 1; overall the labels are even.
    label_N = torch.tensor([0] * 2 + [1] * 8)
    found_N = naive_bayes(label_N, marginal_R=torch.tensor([0.5, 0.5]), num_pairs=100)
    torch.testing.assert_close(found_N, torch.tensor([0.2 * 0.1 / 0.5] * 2 + [0.8 * 0.1 / 0.5] * 8))
    # With the shares of all pairs, the observed pairs stand for exactly as many as there are.
    torch.testing.assert_close((1 / found_N).sum(), torch.tensor(100.0))


def test_naive_bayes_stays_a_probability_where_the_marginal_is_too_small() -> None:
    found_N = naive_bayes(torch.tensor([1, 1]), marginal_R=torch.tensor([0.9, 0.1]), num_pairs=4)
    assert found_N.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("marginal", [[1.0, 0.0], [1.0]])
def test_naive_bayes_needs_a_marginal_of_every_label(marginal: list[float]) -> None:
    with pytest.raises(ValueError, match="marginal_R"):
        naive_bayes(torch.tensor([0, 1]), marginal_R=torch.tensor(marginal), num_pairs=9)


def test_naive_bayes_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0 observed"):
        naive_bayes(torch.tensor([]).long(), marginal_R=torch.tensor([1.0]), num_pairs=9)


def test_logistic_regression_of_a_category_is_its_share() -> None:
    group_N = torch.arange(2).repeat_interleave(500)
    observed_N = torch.cat([torch.arange(500) < 50, torch.arange(500) < 200])
    feature_NF = torch.nn.functional.one_hot(group_N).float()
    found_N = fit_logistic(feature_NF, observed_N, l2=0.0)(feature_NF)
    torch.testing.assert_close(found_N[[0, 999]], torch.tensor([0.1, 0.4]), atol=1e-3, rtol=0)


def test_logistic_regression_finds_the_weights_that_drew_the_observations() -> None:
    generator = torch.Generator().manual_seed(0)
    feature_NF = torch.randn(40_000, 3, generator=generator)
    truth_F = torch.tensor([1.0, -0.5, 0.0])
    chance_N = torch.sigmoid(feature_NF @ truth_F - 2)
    observed_N = torch.rand(40_000, generator=generator) < chance_N
    model = fit_logistic(feature_NF, observed_N, l2=1e-6)
    torch.testing.assert_close(model.linear.weight[0], truth_F, atol=0.06, rtol=0)
    torch.testing.assert_close(model.linear.bias, torch.tensor([-2.0]), atol=0.06, rtol=0)


def test_a_penalty_draws_propensities_to_the_overall_share() -> None:
    feature_NF = torch.tensor([[1.0], [1.0], [-1.0], [-1.0], [-1.0]])
    observed_N = torch.tensor([1, 1, 0, 0, 0])
    found_N = fit_logistic(feature_NF, observed_N, l2=1e4)(feature_NF)
    torch.testing.assert_close(found_N, torch.full((5,), 0.4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("observed", [[0, 0, 0], [1, 1, 1], []])
def test_logistic_regression_needs_observed_and_unobserved_pairs(observed: list[int]) -> None:
    with pytest.raises(ValueError, match="observed and unobserved"):
        fit_logistic(torch.ones(len(observed), 1), torch.tensor(observed), l2=0.1)
