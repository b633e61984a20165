"""Which impressions a figure is about: cold, tail and head items, new users, missing content.

Shapes: N impressions.
"""

import numpy as np
import pyarrow as pa
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

HEAD_SHARE = 0.5
"""Share of the positive events before `valid_start` that the head items have together."""

SLICES = {
    "cold": "items without a positive event before the validation time",
    "warm": "items with at least one",
    "tail": f"items with fewer than {TAIL_BELOW}",
    "head": f"the fewest items that have {HEAD_SHARE:.0%} of them",
    "new_users": "users without any event before the validation time",
}
"""Slices of every data set; others follow from its modalities and features."""

POSITION = "position"
"""Feature or column that says where an impression was shown; the lowest is the first place."""


def slice_text(name: str) -> str:
    """What a slice holds, in plain words."""
    if name.startswith("missing_"):
        return f"items without {name.removeprefix('missing_').replace('_', ' ')}"
    places = {"position_first": "shown in the first place", "position_later": "shown further down"}
    return places.get(name) or SLICES[name]


def slice_columns(dataset: Dataset) -> list[str]:
    """The columns of impressions that `slice_masks` reads, so that no others are read for it."""
    features = dataset.manifest.features
    has_place = POSITION in features.context or POSITION in features.exposure
    return ["user_row", "item_row", *([POSITION] if has_place else [])]


def slice_masks(dataset: Dataset, impressions: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Membership of each impression, by slice; counts are those before `valid_start`.

    `impressions` have the columns that `slice_columns` names. A modality that every
    item has, or none, and a position that is always the same, make no slice.
    """
    user_row_N = impressions["user_row"].to_numpy()
    item_row_N = impressions["item_row"].to_numpy()
    counts = pc.fill_null(dataset.items["train_count"], 0).to_numpy()
    train_count_N = counts[item_row_N]
    seen_users = dataset.events().before(dataset.manifest.cutoffs.valid_start).offsets
    masks = {
        "cold": train_count_N == 0,
        "warm": train_count_N > 0,
        "tail": train_count_N < TAIL_BELOW,
        "head": head_items(counts)[item_row_N],
        "new_users": np.diff(seen_users)[user_row_N] == 0,
    }
    for column in dataset.items.column_names:
        if column.startswith("has_"):
            has = pc.fill_null(dataset.items[column], False).to_numpy()
            if has.any() and not has.all():
                masks["missing_" + column.removeprefix("has_")] = ~has[item_row_N]
    if POSITION in slice_columns(dataset):
        place_N = impressions[POSITION].to_numpy(zero_copy_only=False)
        known_N = np.asarray(impressions[POSITION].is_valid())
        if known_N.any() and len(np.unique(place_N[known_N])) > 1:
            first_N = place_N == place_N[known_N].min()
            masks |= {"position_first": known_N & first_N, "position_later": known_N & ~first_N}
    return masks


def head_items(count_I: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The fewest items that have `HEAD_SHARE` of all events, [I]; those of one count together."""
    falling = np.sort(count_I)[::-1]
    needed = HEAD_SHARE * falling.sum()
    if needed == 0:
        return np.zeros(len(count_I), dtype=bool)
    least = falling[np.searchsorted(np.cumsum(falling), needed)]
    return np.asarray(count_I >= least)


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
