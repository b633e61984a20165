"""Metrics of click scores: AUC, per-user AUC, log loss, calibration. Pure numpy.

Shapes: N impressions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.exit_codes import NOT_FINITE

Floats = NDArray[np.float64]

_PROBABILITY_FLOOR = 1e-7  # a float32 sigmoid reaches 0 and 1, whose log loss would be infinite


class Diverged(ValueError):
    """A model's scores are not numbers."""

    exit_code = NOT_FINITE


def check_scores(score_N: NDArray[np.floating]) -> None:
    """Refuse scores that are not finite numbers; a sort would put NaN above all others."""
    unknown = int((~np.isfinite(score_N)).sum())
    if unknown:
        raise Diverged(
            f"scores: found {unknown} of {len(score_N)} that are not a number or infinite, "
            "expected finite ones; training diverged: lower train.lr and train.id_lr, or set "
            "train.grad_clip_norm"
        )


def average_ranks(score_N: NDArray[np.floating]) -> Floats:
    """Rank of each score from 1, ties sharing the mean of their ranks."""
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def auc(label_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> float:
    """Probability that a click scores above a non-click, a tie counting one half.

    By ranks (Mann and Whitney 1947): (sum of the clicks' ranks - P(P+1)/2) / (P Q). NaN when one
    of the two classes is missing.
    """
    check_scores(score_N)
    clicked = label_N > 0.5
    num_pos = int(clicked.sum())
    num_neg = len(label_N) - num_pos
    if num_pos == 0 or num_neg == 0:
        return float("nan")
    ranks_N = average_ranks(score_N)
    return float((ranks_N[clicked].sum() - num_pos * (num_pos + 1) / 2) / (num_pos * num_neg))


@dataclass(frozen=True)
class UserAuc:
    """Per-user AUC and who took part in it."""

    value: float
    """Mean over users, weighted by impressions; NaN if no user has both classes."""
    users: int
    users_left_out: int
    """Users with only clicks or only non-clicks, whose AUC does not exist."""


def per_user_auc(
    user_N: NDArray[np.integer], label_N: NDArray[np.floating], *, score_N: NDArray[np.floating]
) -> tuple[NDArray[np.integer], Floats, NDArray[np.int64]]:
    """Distinct users, the AUC of each (NaN with one class) and their impressions.

    One sort for all: within a user, ranks are global ranks minus the user's first.
    """
    check_scores(score_N)
    users, user_index_N = np.unique(user_N, return_inverse=True)
    _, score_rank_N = np.unique(score_N, return_inverse=True)
    order_N = np.lexsort((score_rank_N, user_index_N))
    user_sorted, rank_sorted = user_index_N[order_N], score_rank_N[order_N]
    impressions = np.bincount(user_index_N, minlength=len(users))
    first = np.cumsum(impressions) - impressions
    # Ties: runs of equal (user, score) share the mean position of the run.
    new_run = np.ones(len(order_N), dtype=bool)
    new_run[1:] = (user_sorted[1:] != user_sorted[:-1]) | (rank_sorted[1:] != rank_sorted[:-1])
    run_N = np.cumsum(new_run) - 1
    run_length = np.bincount(run_N)
    run_start = np.cumsum(run_length) - run_length
    position_N = (run_start + (run_length + 1) / 2)[run_N] - first[user_sorted]
    clicked_N = (label_N > 0.5)[order_N]
    num_pos = np.bincount(user_sorted, weights=clicked_N, minlength=len(users))
    num_neg = impressions - num_pos
    rank_sum = np.bincount(user_sorted, weights=position_N * clicked_N, minlength=len(users))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (rank_sum - num_pos * (num_pos + 1) / 2) / (num_pos * num_neg)
    values[(num_pos == 0) | (num_neg == 0)] = np.nan
    return users, values, impressions


def gauc(
    user_N: NDArray[np.integer], label_N: NDArray[np.floating], *, score_N: NDArray[np.floating]
) -> UserAuc:
    """AUC of each user, averaged with weights impressions (Zhu et al. 2017, GAUC)."""
    users, values, impressions = per_user_auc(user_N, label_N, score_N=score_N)
    known = ~np.isnan(values)
    if not known.any():
        return UserAuc(float("nan"), len(users), len(users))
    value = float(np.average(values[known], weights=impressions[known]))
    return UserAuc(value, len(users), int((~known).sum()))


def impression_log_loss(label_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> Floats:
    """Log loss of each impression in nats; `score_N` are probabilities."""
    p_N = np.clip(score_N.astype(np.float64), _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    return np.asarray(-np.where(label_N > 0.5, np.log(p_N), np.log1p(-p_N)))


def log_loss(label_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> float:
    """Mean log loss in nats; NaN without impressions."""
    return float(impression_log_loss(label_N, score_N).mean()) if len(label_N) else float("nan")


@dataclass(frozen=True)
class CalibrationCurve:
    """Predicted against observed click rate in bins of equally many impressions."""

    predicted: Floats
    observed: Floats
    impressions: NDArray[np.int64]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |predicted - observed|, weighted by impressions."""
        if not len(self.impressions):
            return float("nan")
        gap = np.abs(self.predicted - self.observed)
        return float(np.average(gap, weights=self.impressions))


def calibration_curve(
    label_N: NDArray[np.floating], score_N: NDArray[np.floating], *, bins: int = 15
) -> CalibrationCurve:
    """Bins of equal mass, which stay filled where clicks are rare (Nguyen and O'Connor 2015).

    Equal scores share a bin, so that no order of the rows matters.
    """
    order_N = np.argsort(score_N, kind="stable")
    ordered_N = score_N[order_N]
    ends = np.array([len(part) for part in np.array_split(order_N, bins)]).cumsum()[:-1]
    ends = ends[ends < len(ordered_N)]
    cuts = np.unique(np.searchsorted(ordered_N, ordered_N[ends]))
    parts = [part for part in np.split(order_N, cuts) if len(part)]
    return CalibrationCurve(
        np.array([score_N[part].astype(np.float64).mean() for part in parts]),
        np.array([label_N[part].astype(np.float64).mean() for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


def calibration_ratio(label_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> float:
    """Predicted clicks over observed clicks, 1 at best; NaN without a click."""
    clicks = float(label_N.astype(np.float64).sum())
    return float(score_N.astype(np.float64).sum()) / clicks if clicks else float("nan")
