"""What a run refuses of its input, and what it warns of: one place, so that all of it reads alike.

Values that are missing, NaN or infinite are no mistake: a numeric field has a learnt vector for
them, a categorical field a row of its own. What is refused here would give a figure that means
something else than it says.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.dataset import Dataset

logger = logging.getLogger(__name__)

SHARD_AGAIN = "re-run python -m data_prep shard"
_SPLIT_COLUMNS = ("user_row", "item_row", "time", "label")


def check_split(table: pa.Table, dataset: Dataset, split: str) -> None:
    """Refuse impressions whose columns, catalogue rows or labels are not what a run reads."""
    where = f"{dataset.dir}/ctr/{split}"
    features = dataset.manifest.features
    needed = (*_SPLIT_COLUMNS, *features.context, *features.label, *features.exposure)
    check_columns(table, needed, where=where)
    check_columns(dataset.users, features.user, where=f"{dataset.dir}, users")
    check_columns(dataset.items, features.item, where=f"{dataset.dir}, items")
    _check_rows(table["user_row"], dataset.num_users, where=f"{where}, user_row")
    _check_rows(table["item_row"], dataset.num_items, where=f"{where}, item_row")
    check_labels(table["label"], where=where)


def check_columns(table: pa.Table, needed: Iterable[str], *, where: str) -> None:
    """Refuse a table that lacks a column."""
    missing = sorted(set(needed) - set(table.column_names))
    if missing:
        raise ValueError(
            f"{where}: found columns {table.column_names}, expected also {missing}, which the "
            f"manifest names; {SHARD_AGAIN}"
        )


def check_labels(label: pa.ChunkedArray, *, where: str) -> None:
    """Refuse labels that are no clicks: ratings, NaN, nothing at all."""
    found = pc.unique(label).to_pylist()
    if not set(found) <= {0.0, 1.0}:
        raise ValueError(
            f"{where}: found labels {sorted(map(str, found))[:5]}, expected 0 and 1; set "
            f"impressions.positive_from and {SHARD_AGAIN}"
        )


def check_classes(label_N: NDArray[np.floating], *, where: str, refuse: bool) -> None:
    """Refuse a split of one class, or warn: there the AUC does not exist (null)."""
    positives = int((label_N > 0.5).sum())
    if 0 < positives < len(label_N):
        return
    found = f"{where}: found {positives:,} positives in {len(label_N):,} impressions"
    if not refuse:
        logger.warning("%s: AUC needs both classes and is null in metrics.json", found)
        return
    raise ValueError(
        f"{found}, expected both classes; move the cut-offs or correct the column behind the "
        f"label, and {SHARD_AGAIN}"
    )


def _check_rows(rows: pa.ChunkedArray, num_rows: int, *, where: str) -> None:
    """Refuse rows outside a catalogue; they would be read as someone else's or as nobody's."""
    if not len(rows):
        return
    bounds = pc.min_max(rows).as_py()
    if rows.null_count or bounds["min"] < 0 or bounds["max"] >= num_rows:
        raise ValueError(
            f"{where}: found {rows.null_count} empty values and rows from {bounds['min']} to "
            f"{bounds['max']}, expected 0 to {num_rows - 1}; {SHARD_AGAIN}"
        )


def warn_of_values(
    totals: NDArray[np.integer], *, owner: str, name: str, num_values: int, min_count: int
) -> None:
    """Warn of a categorical column that can teach nothing.

    Args:
        totals: training impressions of each distinct value.
        owner: whose feature it is.
        name: the column.
        num_values: values that are kept.
        min_count: training impressions that a value needs to be kept.
    """
    if not len(totals):
        logger.warning(
            "%s feature %s: no training impression has a value, so all read the missing row; "
            "leave it out of the features",
            owner, name,
        )  # fmt: skip
    elif len(totals) > 1 and totals.max() == 1:
        logger.warning(
            "%s feature %s: each of its %s values is in one training impression only, which can "
            "be memorised but not learnt from (min_count %d keeps %s of them, the others read the "
            "unknown row); leave it out, or declare it numeric",
            owner, name, f"{len(totals):,}", min_count, f"{num_values:,}",
        )  # fmt: skip
    elif not num_values:
        logger.warning(
            "%s feature %s: none of its %s values is in min_count (%d) training impressions, so "
            "all read the unknown row; lower min_count or leave it out",
            owner, name, f"{len(totals):,}", min_count,
        )  # fmt: skip


def warn_of_unknown_values(share: float, *, name: str, where: Path) -> None:
    """Warn of a column to be scored most of whose values say nothing to the run."""
    logger.warning(
        "%s: column %s: %.0f %% of its values are unknown to the run, which reads them all as one; "
        "expected those of the dataset, so compare the column's type and values with its own",
        where, name, 100 * share,
    )  # fmt: skip
