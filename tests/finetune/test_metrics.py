import numpy as np
import pytest

from finetune.bootstrap import WeightedAuc, resampled_metrics, user_draws
from finetune.metrics import (
    auc,
    calibration_curve,
    calibration_ratio,
    gauc,
    log_loss,
    per_user_auc,
)

Clicks = tuple[np.ndarray, np.ndarray, np.ndarray]


def slow_auc(label: np.ndarray, score: np.ndarray) -> float:
    pairs = [(p > q) + 0.5 * (p == q) for p in score[label == 1] for q in score[label == 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


@pytest.fixture
def clicks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    user = rng.integers(20, size=300)
    label = (rng.random(300) < 0.3).astype(np.float32)
    label[user == 3] = 0
    score = np.round(rng.random(300) * 0.6 + 0.2 * label, 1).astype(np.float32)
    return user, label, score


def test_auc_counts_pairs_and_a_tie_as_one_half(clicks: Clicks) -> None:
    _, label, score = clicks
    assert auc(label, score) == pytest.approx(slow_auc(label, score), abs=1e-12)
    assert auc(np.array([1, 0]), np.array([0.5, 0.5])) == 0.5


def test_auc_of_one_class_is_nan() -> None:
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_gauc_weights_users_by_impressions_and_counts_those_left_out(clicks: Clicks) -> None:
    user, label, score = clicks
    values, weights, left_out = [], [], 0
    for one in np.unique(user):
        value = slow_auc(label[user == one], score[user == one])
        if np.isnan(value):
            left_out += 1
        else:
            values.append(value)
            weights.append((user == one).sum())
    found = gauc(user, label, score_N=score)
    assert found.value == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert found.users_left_out == left_out >= 1


def test_gauc_without_a_user_of_both_classes_is_nan() -> None:
    found = gauc(np.array([0, 1]), np.array([0.0, 1.0]), score_N=np.array([0.1, 0.2]))
    assert np.isnan(found.value)
    assert found.users_left_out == 2


def test_per_user_auc_equals_auc_of_each_user(clicks: Clicks) -> None:
    user, label, score = clicks
    users, values, _ = per_user_auc(user, label, score_N=score)
    expected = [auc(label[user == one], score[user == one]) for one in users]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
    assert np.isfinite(log_loss(np.array([1.0]), np.array([0.0], dtype=np.float32)))


def test_calibration_of_the_true_probability_is_near_perfect() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(100_000)
    label = (rng.random(100_000) < truth).astype(np.float32)
    curve = calibration_curve(label, truth)
    assert curve.impressions.sum() == 100_000
    assert curve.ece < 0.01
    assert calibration_ratio(label, truth) == pytest.approx(1, abs=0.01)
    assert calibration_curve(label, np.full(100_000, 0.9)).ece == pytest.approx(0.4, abs=0.01)


def test_weighted_auc_equals_auc_of_repeated_impressions(clicks: Clicks) -> None:
    _, label, score = clicks
    times = np.random.default_rng(2).integers(3, size=len(label))
    expected = auc(np.repeat(label, times), np.repeat(score, times))
    assert WeightedAuc(label, score)(times) == pytest.approx(expected, abs=1e-12)


def test_resampled_metrics_equal_metrics_of_the_drawn_users(clicks: Clicks) -> None:
    user, label, score = clicks
    masks = {"odd": user % 2 == 1}
    found = resampled_metrics(user, label, score_N=score, masks=masks, num_resamples=10)
    draws = user_draws(len(np.unique(user)), num_resamples=10, seed=0)
    rows = np.repeat(np.arange(len(user)), draws[4][user])
    assert found["auc"][4] == pytest.approx(auc(label[rows], score[rows]))
    assert found["logloss"][4] == pytest.approx(log_loss(label[rows], score[rows]))
    odd = rows[masks["odd"][rows]]
    assert found["auc_odd"][4] == pytest.approx(auc(label[odd], score[odd]))
    assert (draws.sum(1) == draws.shape[1]).all()


def test_calibration_does_not_hang_on_the_order_of_tied_scores() -> None:
    label = np.sort(np.arange(1000) % 4 == 0).astype(np.float32)
    constant = calibration_curve(label, np.full(1000, 0.25))
    assert constant.ece == 0
    assert constant.impressions.tolist() == [1000]
    rng = np.random.default_rng(0)
    score = rng.integers(5, size=1000) / 5
    mixed = rng.permutation(1000)
    one, other = (calibration_curve(label[rows], score[rows]) for rows in (slice(None), mixed))
    assert one.ece == pytest.approx(other.ece)
    assert one.impressions.sum() == 1000


def test_draws_of_users_are_the_same_one_by_one() -> None:
    rng = np.random.default_rng(3)
    together = rng.integers(7, size=(4, 7))
    counts = [np.bincount(row, minlength=7).tolist() for row in together]
    assert user_draws(7, num_resamples=4, seed=3).tolist() == counts
