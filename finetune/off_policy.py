"""What a policy would have earned, from the log of another: IPS, SNIPS, direct, doubly robust.

A row is one action that a logging policy drew with a known probability, and its reward. Every
estimate is a mean, or a ratio of two, of one term a row, hence one way to its interval. The
intervals take target policy and reward model as given: where these are estimated themselves, the
truth is wider.

Shapes: N rows, A actions, U units, R resamples.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Interval
from finetune.metrics import Floats

logger = logging.getLogger(__name__)

Estimator = Literal["ips", "clipped_ips", "snips", "direct", "dr", "clipped_dr"]

ESTIMATORS: tuple[Estimator, ...] = ("ips", "clipped_ips", "snips", "direct", "dr", "clipped_dr")
_NORMAL_95 = 1.959963984540054
_EXTREME_SHARE = 0.05
"""Share of all weight on one row, above which an estimate hangs on that row."""
_EXTREME_ERRORS = 4.0
"""Standard errors between the mean weight and 1, above which the propensities are doubted."""
_CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class PolicyLog:
    """A log of one policy, seen by another: what an estimate reads."""

    reward_N: Floats
    """Clicks or values."""
    logged_N: Floats
    """Probability with which the logging policy drew the row's action, in (0, 1]."""
    target_N: Floats
    """Probability with which the target policy would have, in [0, 1]."""
    predicted_N: Floats | None = None
    """A reward model's value of the row's action. Fitted on other rows, or it flatters itself."""
    expected_N: Floats | None = None
    """The model's value of the target policy in the row's context, Σ_a π(a | x) q(x, a)."""

    def __post_init__(self) -> None:
        if len(self.reward_N) == 0:
            raise ValueError("PolicyLog: found no row, expected at least one action of a log")
        for name, values_N in vars(self).items():
            if values_N is None:
                continue
            if values_N.shape != self.reward_N.shape or not np.isfinite(values_N).all():
                raise ValueError(
                    f"PolicyLog.{name}: found shape {values_N.shape}, NaN or infinity, expected "
                    f"a finite number for each of the {len(self.reward_N)} rows"
                )
        ranges = {
            "logged_N": ((self.logged_N > 0) & (self.logged_N <= 1), "(0, 1]"),
            "target_N": ((self.target_N >= 0) & (self.target_N <= 1), "[0, 1]"),
        }
        for name, (inside_N, expected) in ranges.items():
            if not inside_N.all():
                found = float(getattr(self, name)[~inside_N][0])
                raise ValueError(
                    f"PolicyLog.{name}: found {found:g}, expected probabilities in {expected}; "
                    "correct the column or leave such rows out"
                )

    @staticmethod
    def of_policy(
        reward_N: Floats,
        action_N: NDArray[np.integer],
        *,
        logged_N: Floats,
        policy_NA: Floats,
        value_NA: Floats | None = None,
    ) -> "PolicyLog":
        """From a policy's probabilities of every action, and a model's value of every action."""
        total_N = policy_NA.sum(1)
        if not np.allclose(total_N, 1, atol=1e-5):
            raise ValueError(
                f"policy_NA: found rows that add up to between {total_N.min():g} and "
                f"{total_N.max():g}, expected 1"
            )
        rows_N = np.arange(len(action_N))
        return PolicyLog(
            reward_N=reward_N,
            logged_N=logged_N,
            target_N=policy_NA[rows_N, action_N],
            predicted_N=None if value_NA is None else value_NA[rows_N, action_N],
            expected_N=None if value_NA is None else (policy_NA * value_NA).sum(1),
        )

    @property
    def weight_N(self) -> Floats:
        """Target over logging probability; its mean is 1 if both are right."""
        return self.target_N / self.logged_N


@dataclass(frozen=True)
class Estimate:
    """A policy's mean reward and how much of the log it rests on."""

    reward: Interval
    effective_rows: float
    """(Σ w)² / Σ w² (Kish 1965): rows of an on-policy log that would weigh as much."""
    largest_share: float
    """Share of all weight on the heaviest row."""
    mean_weight: float
    """1 up to chance, where the propensities are right and the log covers the target."""


def policy_of_scores(score_NA: Floats, *, temperature: float) -> Floats:
    """A ranker as a policy: softmax of score / temperature, or at 0 the best, ties shared."""
    if not temperature >= 0 or not np.isfinite(score_NA).all():
        raise ValueError(
            f"policy_of_scores: found temperature {temperature} or scores that are not finite, "
            "expected 0 or more and finite scores"
        )
    ahead_NA = score_NA - score_NA.max(1, keepdims=True)
    chance_NA = np.exp(ahead_NA / temperature) if temperature else (ahead_NA == 0).astype(float)
    return np.asarray(chance_NA / chance_NA.sum(1, keepdims=True), dtype=np.float64)


def estimate_reward(
    log: PolicyLog,
    estimator: Estimator,
    *,
    max_weight: float = 10.0,
    interval: Literal["normal", "bootstrap"] = "normal",
    unit_N: NDArray[np.integer] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The target policy's mean reward with its 95 % interval.

    - ips: mean of w r (Horvitz and Thompson 1952).
    - clipped_ips: mean of min{w, M} r (Swaminathan and Joachims 2015, Counterfactual risk
      minimization), too low where rewards are positive.
    - snips: Σ w r / Σ w (Swaminathan and Joachims 2015, The self-normalized estimator).
    - direct: mean of Σ_a π(a | x) q(x, a), as good as the reward model q.
    - dr: mean of Σ_a π(a | x) q(x, a) + w (r - q) (Dudík et al. 2011, Doubly robust policy
      evaluation and learning), right if w or q is.
    - clipped_dr: the same with min{w, M}.

    Args:
        log: rows, with predictions for the last three.
        estimator: which.
        max_weight: M of the two clipped ones.
        interval: normal, by the delta method for the ratio; or percentiles of rows drawn again.
        unit_N: user of each row, whose rows are drawn together; without it rows are independent.
        num_resamples: draws of the bootstrap.
        seed: seeds them.
    """
    weight_N = log.weight_N
    capped_N = np.minimum(weight_N, max_weight) if estimator.startswith("clipped") else weight_N
    numerator_N, denominator_N = _terms(log, estimator, weight_N=capped_N)
    if denominator_N.sum() <= 0:
        logger.warning(
            "%s: no row's action is one that the target policy would take: it has no value here; "
            "take a log that covers the policy, or a higher temperature",
            estimator,
        )
        nothing = float("nan")
        return Estimate(Interval(nothing, nothing, nothing), 0.0, 0.0, float(weight_N.mean()))
    if estimator != "direct":
        _warn_of_extremes(weight_N, capped_N, is_capped=estimator.startswith("clipped"))
    if unit_N is not None:
        _, index_N = np.unique(unit_N, return_inverse=True)
        numerator_N, denominator_N = (
            np.bincount(index_N, weights=values_N).astype(np.float64)
            for values_N in (numerator_N, denominator_N)
        )
    if interval == "normal":
        reward = normal_ratio(numerator_N, denominator_N)
    else:
        reward = bootstrap_ratio(numerator_N, denominator_N, num_resamples=num_resamples, seed=seed)
    total = float(capped_N.sum())
    return Estimate(
        reward,
        effective_rows=total**2 / float(np.square(capped_N).sum()) if total else 0.0,
        largest_share=float(capped_N.max()) / total if total else 0.0,
        mean_weight=float(weight_N.mean()),
    )


def _terms(log: PolicyLog, estimator: Estimator, *, weight_N: Floats) -> tuple[Floats, Floats]:
    """What is summed above and below the line."""
    ones_N = np.ones(len(weight_N))
    if estimator in ("ips", "clipped_ips"):
        return weight_N * log.reward_N, ones_N
    if estimator == "snips":
        return weight_N * log.reward_N, weight_N
    if log.predicted_N is None or log.expected_N is None:
        raise ValueError(
            f"{estimator}: found no predictions, expected predicted_N and expected_N of a reward "
            "model; use ips or snips without one"
        )
    if estimator == "direct":
        return log.expected_N, ones_N
    return log.expected_N + weight_N * (log.reward_N - log.predicted_N), ones_N


def normal_ratio(numerator_U: Floats, denominator_U: Floats) -> Interval:
    """Σ numerator / Σ denominator with a normal interval by the delta method.

    The variance is that of numerator - value · denominator, summed over independent units.
    """
    total = float(denominator_U.sum())
    value = float(numerator_U.sum()) / total
    units = len(numerator_U)
    if units < 2:
        return Interval(value, float("nan"), float("nan"))
    residual_U = numerator_U - value * denominator_U
    error = float(np.sqrt(np.square(residual_U).sum() * units / (units - 1))) / total
    return Interval(value, value - _NORMAL_95 * error, value + _NORMAL_95 * error)


def bootstrap_ratio(
    numerator_U: Floats, denominator_U: Floats, *, num_resamples: int, seed: int
) -> Interval:
    """The same with percentiles of units drawn again (Efron 1979)."""
    rng = np.random.default_rng(seed)
    units = len(numerator_U)
    values_R = []
    for start in range(0, num_resamples, _CHUNK):
        drawn = rng.integers(units, size=(min(_CHUNK, num_resamples - start), units))
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no weight at all
            values_R.append(numerator_U[drawn].sum(1) / denominator_U[drawn].sum(1))
    value = float(numerator_U.sum() / denominator_U.sum())
    return Interval.of(value, np.concatenate(values_R))


def _warn_of_extremes(weight_N: Floats, capped_N: Floats, *, is_capped: bool) -> None:
    total = float(capped_N.sum())
    share = float(capped_N.max()) / total if total else 0.0
    if share > _EXTREME_SHARE:
        logger.warning(
            "one row of %d holds %.0f %% of all weight (%g; effective rows %.0f): the estimate and "
            "its interval hang on it; %s or take another log",
            len(capped_N), 100 * share, capped_N.max(), total**2 / np.square(capped_N).sum(),
            "lower max_weight" if is_capped else "cap the weights (clipped_ips)",
        )  # fmt: skip
    mean, error = float(weight_N.mean()), float(weight_N.std() / len(weight_N) ** 0.5)
    if abs(mean - 1) > _EXTREME_ERRORS * error + 1e-6:
        logger.warning(
            "weights average %.3f ± %.3f, expected 1: the logged or the target probabilities are "
            "wrong, or the log never took some action of the target",
            mean, error,
        )  # fmt: skip
