import logging
from dataclasses import replace

import numpy as np
import pytest

from finetune.off_policy import (
    ESTIMATORS,
    PolicyLog,
    bootstrap_ratio,
    estimate_reward,
    normal_ratio,
    policy_of_scores,
)

NUM_ACTIONS = 4
LOGGING_A = np.array([0.55, 0.25, 0.15, 0.05])
TARGET_A = np.array([0.1, 0.2, 0.3, 0.4])
CLICK_XA = np.array([[0.02, 0.05, 0.1, 0.3], [0.1, 0.2, 0.05, 0.1]])
"""Click rates of four actions in two contexts, which are equally frequent."""
TRUTH = float((CLICK_XA * TARGET_A).sum(1).mean())


def draw_log(rows: int, *, seed: int, value_XA: np.ndarray = CLICK_XA) -> PolicyLog:
    rng = np.random.default_rng(seed)
    context_N = rng.integers(2, size=rows)
    action_N = rng.choice(NUM_ACTIONS, size=rows, p=LOGGING_A)
    reward_N = (rng.random(rows) < CLICK_XA[context_N, action_N]).astype(np.float64)
    return PolicyLog.of_policy(
        reward_N,
        action_N,
        logged_N=LOGGING_A[action_N],
        policy_NA=np.tile(TARGET_A, (rows, 1)),
        value_NA=value_XA[context_N],
    )


@pytest.fixture
def log() -> PolicyLog:
    """Weights 2, 0.5 and 1."""
    return PolicyLog(
        reward_N=np.array([1.0, 0.0, 1.0]),
        logged_N=np.array([0.25, 0.5, 0.25]),
        target_N=np.array([0.5, 0.25, 0.25]),
        predicted_N=np.array([0.5, 0.5, 1.0]),
        expected_N=np.array([0.6, 0.3, 0.9]),
    )


def test_the_estimates_are_their_formulas(log: PolicyLog) -> None:
    expected = {
        "ips": (2 + 0 + 1) / 3,
        "clipped_ips": (1.5 + 0 + 1) / 3,
        "snips": (2 + 0 + 1) / 3.5,
        "direct": 0.6,
        "dr": 0.6 + (2 * 0.5 - 0.5 * 0.5 + 0) / 3,
        "clipped_dr": 0.6 + (1.5 * 0.5 - 0.5 * 0.5 + 0) / 3,
    }
    for estimator in ESTIMATORS:
        found = estimate_reward(log, estimator, max_weight=1.5)
        assert found.reward.value == pytest.approx(expected[estimator]), estimator
    assert found.mean_weight == pytest.approx(3.5 / 3)
    ips = estimate_reward(log, "ips")
    assert ips.effective_rows == pytest.approx(3.5**2 / (4 + 0.25 + 1))
    assert ips.largest_share == pytest.approx(2 / 3.5)


def test_a_policy_estimates_itself_by_its_mean() -> None:
    rng = np.random.default_rng(0)
    reward_N, logged_N = rng.random(50), np.full(50, 0.2)
    log = PolicyLog(reward_N=reward_N, logged_N=logged_N, target_N=logged_N)
    for estimator in ("ips", "clipped_ips", "snips"):
        found = estimate_reward(log, estimator)
        assert found.reward.value == pytest.approx(reward_N.mean())
        half = 1.959964 * reward_N.std(ddof=1) / 50**0.5
        assert found.reward.high - found.reward.value == pytest.approx(half)
        assert found.effective_rows == pytest.approx(50)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_estimates_are_unbiased_and_their_intervals_hold_what_they_say(estimator: str) -> None:
    # A reward model that is wrong: doubly robust must not mind.
    wrong_XA = np.full_like(CLICK_XA, 0.1)
    found = [
        estimate_reward(draw_log(1500, seed=seed, value_XA=wrong_XA), estimator)  # type: ignore[arg-type]
        for seed in range(400)
    ]
    values = np.array([one.reward.value for one in found])
    assert values.mean() == pytest.approx(TRUTH, abs=4 * values.std() / len(values) ** 0.5)
    covered = np.mean([one.reward.low <= TRUTH <= one.reward.high for one in found])
    assert 0.9 <= covered <= 0.98


def test_doubly_robust_is_right_with_wrong_propensities_and_a_right_model() -> None:
    log = draw_log(200_000, seed=1)
    wrong = replace(log, logged_N=np.full(len(log.reward_N), 0.25))
    assert estimate_reward(wrong, "dr").reward.value == pytest.approx(TRUTH, abs=0.003)
    assert abs(estimate_reward(wrong, "ips").reward.value - TRUTH) > 0.03


def test_the_direct_method_is_as_wrong_as_its_model() -> None:
    log = draw_log(1000, seed=0, value_XA=np.full_like(CLICK_XA, 0.7))
    assert estimate_reward(log, "direct").reward.value == pytest.approx(0.7)


def test_a_good_model_makes_doubly_robust_narrower_than_ips() -> None:
    log = draw_log(5000, seed=2)
    width = {
        name: estimate_reward(log, name).reward.high - estimate_reward(log, name).reward.low
        for name in ("ips", "dr")
    }
    assert width["dr"] < 0.97 * width["ips"]


def test_capped_weights_pull_positive_rewards_down() -> None:
    log = draw_log(50_000, seed=3)
    ips, clipped = (estimate_reward(log, name) for name in ("ips", "clipped_ips"))
    assert clipped.reward.value == pytest.approx(ips.reward.value)  # the largest weight is 8
    capped = estimate_reward(log, "clipped_ips", max_weight=2)
    assert capped.reward.value < TRUTH - 0.03
    assert capped.effective_rows > ips.effective_rows


def test_a_trained_ranker_is_judged_on_the_log_of_another() -> None:
    rng = np.random.default_rng(4)
    rows = 100_000
    context_N = rng.integers(2, size=rows)
    action_N = rng.choice(NUM_ACTIONS, size=rows, p=LOGGING_A)
    reward_N = (rng.random(rows) < CLICK_XA[context_N, action_N]).astype(np.float64)
    policy_NA = policy_of_scores(CLICK_XA[context_N], temperature=0)
    log = PolicyLog.of_policy(reward_N, action_N, logged_N=LOGGING_A[action_N], policy_NA=policy_NA)
    best = CLICK_XA.max(1).mean()
    found = estimate_reward(log, "snips").reward
    assert found.low < best < found.high
    assert found.value == pytest.approx(best, abs=0.02)


def test_scores_become_a_policy() -> None:
    score_NA = np.array([[0.0, np.log(3.0)], [5.0, 5.0]])
    np.testing.assert_allclose(
        policy_of_scores(score_NA, temperature=1.0), [[0.25, 0.75], [0.5, 0.5]]
    )
    np.testing.assert_allclose(policy_of_scores(score_NA, temperature=0), [[0, 1], [0.5, 0.5]])
    assert np.isfinite(policy_of_scores(1000 * score_NA, temperature=0.01)).all()
    with pytest.raises(ValueError, match="temperature"):
        policy_of_scores(score_NA, temperature=-1)


def test_the_bootstrap_agrees_with_the_delta_method() -> None:
    rng = np.random.default_rng(5)
    weight_N = rng.random(3000) + 0.5
    numerator_N = weight_N * (rng.random(3000) < 0.3)
    normal = normal_ratio(numerator_N, weight_N)
    bootstrap = bootstrap_ratio(numerator_N, weight_N, num_resamples=2000, seed=0)
    assert bootstrap.value == normal.value
    assert bootstrap.low == pytest.approx(normal.low, abs=0.002)
    assert bootstrap.high == pytest.approx(normal.high, abs=0.002)
    again = bootstrap_ratio(numerator_N, weight_N, num_resamples=2000, seed=0)
    assert again == bootstrap


def test_rows_of_one_user_are_one_observation(log: PolicyLog) -> None:
    log = draw_log(2000, seed=6)
    twice = PolicyLog(
        **{
            name: None if values_N is None else np.tile(values_N, 2)
            for name, values_N in vars(log).items()
        }
    )
    alone = estimate_reward(log, "snips").reward
    together = estimate_reward(twice, "snips", unit_N=np.tile(np.arange(2000), 2)).reward
    assert together.value == pytest.approx(alone.value)
    assert together.high == pytest.approx(alone.high)
    flattered = estimate_reward(twice, "snips").reward
    assert flattered.high - flattered.low < 0.75 * (alone.high - alone.low)
    one_user = estimate_reward(twice, "snips", unit_N=np.zeros(4000, dtype=int)).reward
    assert np.isnan(one_user.low)


def test_an_estimate_that_hangs_on_one_row_says_so(caplog: pytest.LogCaptureFixture) -> None:
    logged_N = np.full(200, 0.5)
    logged_N[7] = 0.001
    log = PolicyLog(reward_N=np.ones(200), logged_N=logged_N, target_N=np.full(200, 0.5))
    with caplog.at_level(logging.WARNING):
        estimate_reward(log, "ips")
    assert "one row of 200 holds 72 % of all weight" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        estimate_reward(log, "clipped_ips", max_weight=2)
    assert "holds" not in caplog.text


def test_weights_that_do_not_average_one_are_doubted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        estimate_reward(draw_log(5000, seed=0), "ips")
    assert caplog.text == ""
    log = draw_log(5000, seed=0)
    with caplog.at_level(logging.WARNING):
        estimate_reward(replace(log, logged_N=np.full(5000, 0.9)), "ips")
    assert "expected 1" in caplog.text


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("logged_N", 0.0),
        ("logged_N", 1.2),
        ("logged_N", float("nan")),
        ("target_N", -0.1),
        ("target_N", 1.2),
        ("reward_N", float("nan")),
        ("predicted_N", float("inf")),
    ],
)
def test_a_log_with_bad_numbers_is_refused(log: PolicyLog, field: str, bad: float) -> None:
    values_N = getattr(log, field).copy()
    values_N[1] = bad
    with pytest.raises(ValueError, match=rf"PolicyLog\.{field}"):
        replace(log, **{field: values_N})


def test_other_bad_input_is_one_clear_error(log: PolicyLog) -> None:
    empty = np.array([])
    with pytest.raises(ValueError, match="found no row"):
        PolicyLog(reward_N=empty, logged_N=empty, target_N=empty)
    with pytest.raises(ValueError, match="found no predictions"):
        estimate_reward(replace(log, predicted_N=None), "dr")
    with pytest.raises(ValueError, match="add up"):
        PolicyLog.of_policy(
            np.ones(2), np.zeros(2, dtype=int), logged_N=np.ones(2), policy_NA=np.ones((2, 3))
        )


def test_a_policy_that_the_log_does_not_cover_has_no_snips_and_its_other_estimates(
    log: PolicyLog, caplog: pytest.LogCaptureFixture
) -> None:
    apart = replace(log, target_N=np.zeros(3))
    assert np.isnan(estimate_reward(apart, "snips").reward.value)
    assert "snips: no row's action is one that the target policy would take" in caplog.text
    assert estimate_reward(apart, "ips").reward.value == 0
