"""Parquet written in row groups under a temporary name, then renamed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.records import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 131_072


def write_parquet(
    tables: Iterable["pa.Table"], path: Path, *, schema: "pa.Schema", is_raw: bool = False
) -> int:
    """Write each table as a row group; returns the number of rows.

    `is_raw` is for pictures and the like: stored as they are, so that a group's size is that of its
    cells, and in pages of 1 MB or one cell, which is what a reader holds at least.
    """
    import pyarrow.parquet as pq

    options: dict[str, Any] = {"compression": "zstd"}
    if is_raw:
        options = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}
    rows = 0
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))
            rows += table.num_rows
    return rows


def in_row_groups(tables: Iterable["pa.Table"], *, rows: int) -> Iterator["pa.Table"]:
    """The same rows in tables of exactly `rows` rows; the last may be shorter."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = 0
    for table in tables:
        if not held and table.num_rows == rows:
            yield table.combine_chunks()  # no copy, where it is one chunk
            continue
        held.append(table)
        count += table.num_rows
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows).combine_chunks()
            count -= rows
            held = [joined.slice(rows)] if count else []
    if count:
        yield pa.concat_tables(held).combine_chunks()


def read_in_order(path: Path, columns: list[str] | None = None) -> Iterator["pa.Table"]:
    """A file's row groups, one after the other."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)
