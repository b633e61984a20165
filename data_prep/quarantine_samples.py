"""Some of the rows that were set aside, by cause, for `report` to show."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.records import QUARANTINE_DIR


@dataclass(frozen=True)
class Samples:
    """Rows of one cause."""

    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)


def read_samples(dataset_dir: Path, *, per_cause: int) -> dict[str, Samples]:
    """The first rows of every cause, under the names that the manifest counts them by.

    A log's file names a cause without the table (`null_id` in interactions.parquet is
    `interactions/null_id`); an item of content.parquet may have several causes.
    """
    samples: dict[str, Samples] = {}
    for path in sorted((dataset_dir / QUARANTINE_DIR).glob("*.parquet")):
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name != "cause"]
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                for cause in dict.fromkeys(str(row.pop("cause")).split(", ")):
                    name = cause if "/" in cause else f"{path.stem}/{cause}"
                    kept = samples.setdefault(name, Samples(columns))
                    if len(kept.rows) < per_cause:
                        kept.rows.append([row[column] for column in columns])
    return samples
