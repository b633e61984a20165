"""Intervals by drawing users, with all their impressions, again and again.

Impressions of one user are not independent, so users are drawn, never impressions. Every figure
of a report is computed on the same draws, which makes differences paired.

Shapes: N impressions, U users, R resamples, P runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import Floats, impression_log_loss, per_user_auc


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, draws_R: Floats) -> "Interval":
        """The middle 95 % of the draws that exist; NaN if none does."""
        known = draws_R[~np.isnan(draws_R)]
        if not len(known):
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(known, [0.025, 0.975])
        return Interval(value, float(low), float(high))

    @property
    def text(self) -> str:
        """A difference as a table shows it."""
        if np.isnan(self.value):
            return "n/a"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


def each_draw(num_users: int, *, num_resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """How often each user is drawn, [U] a resample; each sums to U."""
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        drawn = rng.integers(num_users, size=num_users)
        yield np.bincount(drawn, minlength=num_users).astype(np.int32)


def user_draws(num_users: int, *, num_resamples: int, seed: int) -> NDArray[np.int32]:
    """The same in one piece, [R, U]."""
    return np.stack(list(each_draw(num_users, num_resamples=num_resamples, seed=seed)))


class WeightedAuc:
    """AUC of one set of scores under many weightings; the sort is done once."""

    def __init__(self, label_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> None:
        self._order_N = np.argsort(score_N, kind="stable")
        ordered = score_N[self._order_N]
        self._clicked_N = label_N[self._order_N] > 0.5
        starts = np.ones(len(ordered), dtype=bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        self._starts = np.flatnonzero(starts)

    def __call__(self, weight_N: NDArray[np.floating]) -> float:
        """Weighted Mann–Whitney: a click counts the weight of non-clicks below it, ties half."""
        if not len(self._order_N):
            return float("nan")
        w_N = weight_N[self._order_N].astype(np.float64)
        pos = np.add.reduceat(np.where(self._clicked_N, w_N, 0.0), self._starts)
        neg = np.add.reduceat(np.where(self._clicked_N, 0.0, w_N), self._starts)
        total = pos.sum() * neg.sum()
        below = np.cumsum(neg) - neg
        return float((pos * (below + neg / 2)).sum() / total) if total else float("nan")


def resampled_metrics(
    user_N: NDArray[np.integer],
    label_N: NDArray[np.floating],
    *,
    score_N: NDArray[np.floating],
    masks: dict[str, NDArray[np.bool_]],
    num_resamples: int,
    seed: int = 0,
) -> dict[str, Floats]:
    """AUC, GAUC, log loss and the AUC of every slice on each draw of users, [R] a metric."""
    users, user_index_N = np.unique(user_N, return_inverse=True)
    impressions_U = np.bincount(user_index_N, minlength=len(users)).astype(np.float64)
    # Sums per user make the mean over drawn impressions two products.
    loss_U = np.bincount(user_index_N, weights=impression_log_loss(label_N, score_N))
    _, auc_U, _ = per_user_auc(user_N, label_N, score_N=score_N)
    known_U = np.where(np.isnan(auc_U), 0.0, impressions_U)
    auc_U = np.nan_to_num(auc_U)
    everything = {"auc": np.ones(len(label_N), dtype=bool)}
    ranked = {}
    for name, mask in {**everything, **{f"auc_{k}": m for k, m in masks.items()}}.items():
        rows = np.flatnonzero(mask)
        ranked[name] = user_index_N[rows], WeightedAuc(label_N[rows], score_N[rows])
    found: dict[str, list[float]] = {name: [] for name in ("logloss", "gauc", *ranked)}
    for weight_U in each_draw(len(users), num_resamples=num_resamples, seed=seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            found["logloss"].append(float((weight_U @ loss_U) / (weight_U @ impressions_U)))
            found["gauc"].append(float((weight_U @ (known_U * auc_U)) / (weight_U @ known_U)))
        for name, (index, weighted) in ranked.items():
            found[name].append(weighted(weight_U[index]))
    return {name: np.array(values_R) for name, values_R in found.items()}
