"""Parquet written in row groups under a temporary name, then renamed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 131_072


def write_parquet(
    tables: Iterable["pa.Table"],
    path: Path,
    *,
    schema: "pa.Schema",
    compression: str | dict[str, str] = "zstd",
    encodings: dict[str, str] | None = None,
) -> int:
    """Write each table as a row group; returns the number of rows.

    `encodings` names every column's Parquet encoding; without it pyarrow chooses, by trying a
    dictionary of every column's values first.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    rows = 0
    try:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression=compression,
            use_dictionary=encodings is None,
            column_encoding=encodings,
        ) as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))
                rows += table.num_rows
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error}); make room on its disk, then run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
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
