"""Groups of impressions that a figure is given for: the slices, and the values of a feature.

Shapes: N impressions.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from finetune.trust_settings import TrustConfig
from finetune.vocabulary import Owner

OTHERS, MISSING = "others", "missing"


def group_masks(
    config: TrustConfig,
    dataset: Dataset,
    impressions: pa.Table,
    *,
    slices: dict[str, NDArray[np.bool_]],
) -> dict[str, NDArray[np.bool_]]:
    """The slices, then `feature=value` for the features that the settings name.

    Args:
        config: which features, and how many of their values.
        dataset: where users and items have theirs.
        impressions: one split with user_row, item_row and the columns of `group_columns`.
        slices: membership of each impression, by slice.

    Raises:
        ValueError: no such feature, or one whose values are no groups.
    """
    masks = dict(slices)
    for name in config.group_features:
        value_N = _values(dataset, impressions, name)
        counts = pc.value_counts(value_N.drop_null())
        ordered = sorted(counts.to_pylist(), key=lambda one: (-one["counts"], str(one["values"])))
        kept = [one["values"] for one in ordered[: config.max_groups]]
        for value in kept:
            masks[f"{name}={value}"] = _mask(pc.equal(value_N, value))
        missing_N = _mask(pc.is_null(value_N))
        if len(ordered) > len(kept):
            is_kept_N = _mask(pc.is_in(value_N, value_set=pa.array(kept, value_N.type)))
            masks[f"{name}={OTHERS}"] = ~is_kept_N & ~missing_N
        if missing_N.any():
            masks[f"{name}={MISSING}"] = missing_N
    return masks


def check_group_features(config: TrustConfig, dataset: Dataset) -> None:
    """Refuse a feature that the dataset does not have, before anything is trained."""
    for name in config.group_features:
        _owner(dataset, name)


def group_columns(config: TrustConfig, dataset: Dataset) -> list[str]:
    """The columns of impressions that the features of the settings are."""
    return [name for name in config.group_features if _owner(dataset, name) == "context"]


def _values(dataset: Dataset, impressions: pa.Table, name: str) -> pa.Array:
    """The feature of each impression, [N]."""
    owner = _owner(dataset, name)
    if owner == "context":
        column = impressions[name]
    else:
        table = dataset.users if owner == "user" else dataset.items
        column = table[name].take(impressions[f"{owner}_row"])
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _owner(dataset: Dataset, name: str) -> Owner:
    features = dataset.manifest.features
    owners: dict[Owner, dict[str, str]] = {
        "user": dict(features.user),
        "item": dict(features.item),
        "context": dict(features.context),
    }
    for owner, kinds in owners.items():
        if kinds.get(name) == "categorical":
            return owner
    known = [one for kinds in owners.values() for one, kind in kinds.items()
             if kind == "categorical"]  # fmt: skip
    raise ValueError(
        f"trust.group_features: found {name!r}, expected categorical features of {dataset.dir} "
        f"({', '.join(known) or 'it has none'}); correct it in the config"
    )


def _mask(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)
