"""Which impressions a figure is about: cold, warm and tail items, new users.

Shapes: N impressions.
"""

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from finetune.metrics import (
    auc,
    calibration_curve,
    calibration_ratio,
    gauc,
    log_loss,
)

TAIL_BELOW = 10
"""Positive events before `valid_start` below which an item is tail."""

SLICES = {
    "cold": "items without a positive event before the validation time",
    "warm": "items with at least one",
    "tail": f"items with fewer than {TAIL_BELOW}",
    "new_users": "users without any event before the validation time",
}


def slice_masks(
    dataset: Dataset, user_row_N: NDArray[np.integer], item_row_N: NDArray[np.integer]
) -> dict[str, NDArray[np.bool_]]:
    """Membership of each impression, by slice; counts are those before `valid_start`."""
    counts = pc.fill_null(dataset.items["train_count"], 0).to_numpy()
    train_count_N = counts[item_row_N]
    seen_users = dataset.events().before(dataset.manifest.cutoffs.valid_start).offsets
    return {
        "cold": train_count_N == 0,
        "warm": train_count_N > 0,
        "tail": train_count_N < TAIL_BELOW,
        "new_users": np.diff(seen_users)[user_row_N] == 0,
    }


def slice_metrics(
    user_N: NDArray[np.integer],
    label_N: NDArray[np.floating],
    *,
    score_N: NDArray[np.floating],
    masks: dict[str, NDArray[np.bool_]],
) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics over all impressions and the AUC of every slice, and what was counted.

    A slice with one class has AUC NaN; its counts say why.
    """
    per_user = gauc(user_N, label_N, score_N=score_N)
    figures = {
        "auc": auc(label_N, score_N),
        "gauc": per_user.value,
        "logloss": log_loss(label_N, score_N),
        "calibration": calibration_ratio(label_N, score_N),
        "ece": calibration_curve(label_N, score_N).ece,
    }
    counts = {
        "impressions": len(label_N),
        "clicks": int((label_N > 0.5).sum()),
        "users": per_user.users,
        "gauc_users_left_out": per_user.users_left_out,
    }
    for name, mask in masks.items():
        figures[f"auc_{name}"] = auc(label_N[mask], score_N[mask])
        figures[f"logloss_{name}"] = log_loss(label_N[mask], score_N[mask])
        counts[f"impressions_{name}"] = int(mask.sum())
        counts[f"clicks_{name}"] = int((label_N[mask] > 0.5).sum())
    return figures, counts
