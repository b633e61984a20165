"""Parquet written in row groups under a temporary name, then renamed."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(
    tables: Iterable["pa.Table"], path: Path, *, schema: "pa.Schema", compression: str = "zstd"
) -> int:
    """Write each table as a row group; returns the number of rows."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    rows = 0
    with pq.ParquetWriter(temporary, schema, compression=compression) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))
            rows += table.num_rows
    temporary.replace(path)
    return rows
