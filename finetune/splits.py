"""The CTR splits of a dataset as they lie in its files, piece by piece."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.dataset import Dataset
from data_prep.records import SPLITS
from data_prep.records import Split as SplitName


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
    """One split's impressions in pieces; refuses an empty split and labels that are no clicks."""
    num_rows = 0
    for table in dataset.impression_pieces(split):
        num_rows += table.num_rows
        labels = pc.unique(table["label"]).to_pylist()
        if not set(labels) <= {0.0, 1.0}:
            raise ValueError(
                f"{dataset.dir}/ctr/{split}: found labels {sorted(map(str, labels))[:5]}, expected "
                "0 and 1; set impressions.positive_from and re-run python -m data_prep shard"
            )
        yield table
    _check_not_empty(dataset, split, num_rows)
