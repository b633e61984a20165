"""Whom a ranker serves worse, what it shows, and what it does when content is bad.

Calibration and AUC of groups, how evenly the top of the lists exposes items and how much of it
goes to new ones. Pure numpy; robustness.py asks a model again with other content.

Shapes: N impressions, I items.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import auc, calibration_curve, calibration_ratio

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """How a group of impressions fares beside all of them; NaN where a figure does not exist."""

    impressions: int
    clicks: int
    auc: float
    auc_gap: float
    """AUC of the group less that of all impressions; below zero: it is served worse."""
    calibration: float
    """Predicted over observed clicks, 1 at best."""
    ece: float
    """Expected calibration error, in bins of equally many impressions."""


def group_figures(
    label_N: NDArray[np.floating], score_N: NDArray[np.floating], *, masks: Masks
) -> dict[str, dict[str, float]]:
    """`GroupFigures` of every group that has an impression, by name."""
    overall = auc(label_N, score_N)
    figures = {}
    for name, mask in masks.items():
        if not mask.any():
            continue
        label, score = label_N[mask], score_N[mask]
        value = auc(label, score)
        figures[name] = asdict(
            GroupFigures(
                impressions=len(label),
                clicks=int((label > 0.5).sum()),
                auc=value,
                auc_gap=value - overall,
                calibration=calibration_ratio(label, score),
                ece=calibration_curve(label, score).ece,
            )
        )
    return figures


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What the users see when their impressions are ranked and the first k are shown."""

    k: int
    users: int
    """Users with more than k impressions; for the others there is nothing to choose."""
    gini: float
    """Gini coefficient of the exposures over these users' candidates: 0 all alike, 1 one item."""
    gini_of_candidates: float
    """The same of their impressions as they were logged: what there was to choose from."""
    new_item_share: float
    """Share of the shown places that cold items take (no positive event before `valid_start`)."""
    new_item_share_of_candidates: float
    """Share of the impressions that are of cold items: where a blind ranker would end."""


def exposure(
    user_N: NDArray[np.integer],
    item_N: NDArray[np.integer],
    *,
    score_N: NDArray[np.floating],
    new_N: NDArray[np.bool_],
    k: int,
) -> Exposure:
    """Rank each user's impressions by score, ties in the given order, and look at the first k."""
    _, user_index_N, sizes_U = np.unique(user_N, return_inverse=True, return_counts=True)
    candidate_N = sizes_U[user_index_N] > k
    order_N = np.lexsort((-score_N, user_index_N))
    first_U = np.cumsum(sizes_U) - sizes_U
    place_N = np.empty(len(user_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(user_N)) - first_U[user_index_N[order_N]]
    shown_N = candidate_N & (place_N < k)
    items, item_index = np.unique(item_N[candidate_N], return_inverse=True)
    shown = item_index[shown_N[candidate_N]]
    return Exposure(
        k=k,
        users=int((sizes_U > k).sum()),
        gini=gini(np.bincount(shown, minlength=len(items))),
        gini_of_candidates=gini(np.bincount(item_index, minlength=len(items))),
        new_item_share=_share(new_N[shown_N]),
        new_item_share_of_candidates=_share(new_N[candidate_N]),
    )


def gini(count_I: NDArray[np.integer]) -> float:
    """Gini coefficient Σ_i (2i - I - 1) x_i / (I Σ x_i), x ascending, i from 1; NaN of nothing.

    Half the mean absolute difference over the mean (Gini 1912).
    """
    total = float(count_I.sum())
    if not total:
        return float("nan")
    ascending_I = np.sort(count_I).astype(np.float64)
    num_items = len(ascending_I)
    weight_I = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weight_I * ascending_I).sum() / (num_items * total))


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else float("nan")
