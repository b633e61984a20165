"""Qini curve and AUUC: who to treat first, judged without knowing any one person's uplift.

Conventions differ between papers and libraries; these hold here. People are ordered by predicted
uplift, highest first. The tied come as one step, a straight line. The horizontal axis is the share
of people treated, 0 … 1. Both curves start at 0 and end at the average effect of treating all, in
outcomes a person; areas are not divided by those of a best curve, which no data set knows. An arm
that has nobody among the first k counts as rate 0 there.

The arms must have been drawn at random, with one share of treated for all.

Shapes: N people, K ends of runs of equal scores, with 0 before them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import Floats


@dataclass(frozen=True)
class UpliftCurve:
    """A gain for each share of people treated."""

    share_K: Floats
    gain_K: Floats

    @property
    def area(self) -> float:
        """Area under the curve, by trapezoids."""
        height_K = (self.gain_K[1:] + self.gain_K[:-1]) / 2
        return float((height_K * np.diff(self.share_K)).sum())

    @property
    def area_above_random(self) -> float:
        """Area between the curve and the straight line to its end."""
        return self.area - float(self.gain_K[-1]) / 2


def uplift_curve(
    outcome_N: NDArray[np.floating], *, treated_N: NDArray[np.integer], score_N: Floats
) -> UpliftCurve:
    """(Y_t(k) / N_t(k) - Y_c(k) / N_c(k)) k / N (Gutierrez and Gérardy 2017)."""
    share_K, treated, control = _cumulative(outcome_N, treated_N, score_N=score_N)
    return UpliftCurve(share_K, (treated.rate_K - control.rate_K) * share_K)


def qini_curve(
    outcome_N: NDArray[np.floating], *, treated_N: NDArray[np.integer], score_N: Floats
) -> UpliftCurve:
    """(Y_t(k) - Y_c(k) N_t(k) / N_c(k)) / N_t (Radcliffe 2007), N_t all the treated.

    Radcliffe counts outcomes; divided by N_t, the curve ends where the uplift curve does.
    """
    share_K, treated, control = _cumulative(outcome_N, treated_N, score_N=score_N)
    gained_K = treated.sum_K - control.rate_K * treated.count_K
    return UpliftCurve(share_K, gained_K / treated.count_K[-1])


def auuc(
    outcome_N: NDArray[np.floating], *, treated_N: NDArray[np.integer], score_N: Floats
) -> float:
    """Area under the uplift curve; half the average effect for an order by chance."""
    return uplift_curve(outcome_N, treated_N=treated_N, score_N=score_N).area


def qini_coefficient(
    outcome_N: NDArray[np.floating], *, treated_N: NDArray[np.integer], score_N: Floats
) -> float:
    """Area between Qini curve and random line; about 0 for an order by chance."""
    return qini_curve(outcome_N, treated_N=treated_N, score_N=score_N).area_above_random


@dataclass(frozen=True)
class _Arm:
    """One arm among the first k."""

    count_K: Floats
    sum_K: Floats

    @property
    def rate_K(self) -> Floats:
        return np.divide(
            self.sum_K, self.count_K, out=np.zeros_like(self.sum_K), where=self.count_K > 0
        )


def _cumulative(
    outcome_N: NDArray[np.floating], treated_N: NDArray[np.integer], *, score_N: Floats
) -> tuple[Floats, _Arm, _Arm]:
    arms = set(np.unique(treated_N).tolist())
    if arms != {0, 1}:
        raise ValueError(
            f"treated_N: found the arms {sorted(arms)}, expected 0 and 1, both: one arm alone "
            "says nothing of uplift"
        )
    for name, values_N in {"outcome_N": outcome_N, "score_N": score_N}.items():
        if values_N.shape != treated_N.shape or not np.isfinite(values_N).all():
            raise ValueError(
                f"{name}: found shape {values_N.shape}, NaN or infinity, expected a finite number "
                f"for each of the {len(treated_N)} people"
            )
    order_N = np.argsort(-score_N.astype(np.float64), kind="stable")
    ordered_N = score_N[order_N]
    ends_K = np.append(np.flatnonzero(ordered_N[1:] != ordered_N[:-1]), len(ordered_N) - 1)
    treated_now_N = treated_N[order_N] == 1
    outcome_now_N = outcome_N[order_N].astype(np.float64)

    def arm(member_N: NDArray[np.bool_]) -> _Arm:
        count_K = np.cumsum(member_N)[ends_K].astype(np.float64)
        sum_K = np.cumsum(np.where(member_N, outcome_now_N, 0.0))[ends_K]
        return _Arm(np.insert(count_K, 0, 0.0), np.insert(sum_K, 0, 0.0))

    share_K = np.insert((ends_K + 1) / len(ordered_N), 0, 0.0)
    return share_K, arm(treated_now_N), arm(~treated_now_N)
