"""The CTR splits of a dataset as they lie in its files, piece by piece."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_prep.dataset import Dataset
from data_prep.records import SPLITS
from data_prep.records import Split as SplitName
from finetune.input_checks import check_split


def check_splits(dataset: Dataset) -> None:
    """Refuse a dataset with an empty split, by its manifest: test itself stays closed."""
    for split in SPLITS:
        _check_not_empty(dataset, split, dataset.manifest.counts.get(f"impressions_{split}", 0))


def _check_not_empty(dataset: Dataset, split: SplitName, num_impressions: int) -> None:
    if num_impressions == 0:
        cutoffs = dataset.manifest.cutoffs
        raise ValueError(
            f"{dataset.dir}/ctr/{split}: found no impressions, expected some in each of {SPLITS} "
            f"(valid_start {cutoffs.valid_start}, test_start {cutoffs.test_start}); move the "
            "cut-offs or map an `impressions` table, and re-run python -m data_prep shard"
        )


def split_pieces(dataset: Dataset, split: SplitName) -> Iterator[pa.Table]:
    """One split's impressions in pieces; refuses an empty split and what `check_split` refuses."""
    num_rows = 0
    for table in dataset.impression_pieces(split):
        num_rows += table.num_rows
        check_split(table, dataset, split)
        yield table
    _check_not_empty(dataset, split, num_rows)


def read_split(dataset: Dataset, split: SplitName) -> pa.Table:
    """One split's impressions at once."""
    return pa.concat_tables(list(split_pieces(dataset, split)))


def check_outcome(column: pa.ChunkedArray, kind: str, where: str) -> None:
    """Refuse what `data_prep shard` would have set aside."""
    value_N = column.to_numpy().astype(np.float64)
    if kind == "binary":
        good, expected = bool(((value_N == 0) | (value_N == 1)).all()), "0 and 1"
    else:
        good, expected = bool(np.isfinite(value_N).all()), "finite numbers"
    if not good:
        raise ValueError(
            f"{where}: found other values than {expected}, expected a dataset of python -m "
            "data_prep shard, which sets such rows aside; run it again"
        )
