"""What runs the relational step's Ibis expressions: DuckDB here, or Spark (data_prep/spark.py).

The expressions are the same on both; only opening files, keeping tables and streaming results
know the engine.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_prep.available_memory import available_bytes
from data_prep.csv_headers import files_by_header, likely_separator
from data_prep.parquet_files import in_row_groups
from data_prep.raw_files import RawFiles
from data_prep.settings import ShardConfig

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir
    import pyarrow as pa

logger = logging.getLogger(__name__)

LEAST_BYTES = 128 << 20
"""DuckDB gets this much at least, whatever the limit."""
UNKNOWN_MEMORY_BYTES = 2 << 30
"""The limit where the system does not say what memory is left."""
STREAM_BYTES = 144 << 20
"""What the stream of results takes, and what DuckDB does not count."""
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


class Engine(Protocol):
    """Runs Ibis expressions over raw files of any size."""

    name: str
    errors: tuple[type[Exception], ...]
    """What the engine raises; the first line of the text says why."""

    def read(self, raw: RawFiles) -> "ir.Table":
        """Open files; of CSV and JSON, every column that is no list is text.

        Columns go by name: files may have them in any order.
        """
        ...

    def sniff(self, raw: RawFiles) -> dict[str, str]:
        """Columns of the first file and their DuckDB types, guessed from its first rows."""
        ...

    def keep(self, name: str, expression: "ir.Table") -> "ir.Table":
        """Compute an expression once, to be used several times."""
        ...

    def rows(self, expression: "ir.Table") -> list[dict[str, Any]]:
        """A small result."""
        ...

    def stream(
        self, expression: "ir.Table", *, rows: int, schema: "pa.Schema | None" = None
    ) -> Iterator["pa.Table"]:
        """A result in its order, in tables of exactly `rows` rows, without holding all."""
        ...

    def close(self) -> None:
        """Let go of memory and temporary files."""
        ...


def connect(config: ShardConfig, work_dir: Path) -> Engine:
    """The engine that the settings name; its temporary files lie in the work folder."""
    if config.engine == "spark":
        from data_prep.spark import SparkEngine

        return SparkEngine(config.spark_conf, spill_dir=work_dir / "spill")
    return DuckDBEngine(work_dir, memory_limit=config.memory_limit, threads=config.duckdb_threads)


def first_line(error: Exception) -> str:
    """What it says first, behind the file that DuckDB names further down, and how many cells."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    files = [line.removeprefix("file = ") for line in lines if line.startswith("file = ")]
    cells = [line for line in lines if line.startswith("Expected Number of Columns")]
    return ": ".join([*files[:1], *(lines[:1] or [type(error).__name__]), *cells[:1]])


def count_rows(engine: Engine, table: "ir.Table") -> int:
    """How many rows an expression has."""
    (row,) = engine.rows(table.aggregate(rows=table.count()))
    return int(row["rows"])


class DuckDBEngine:
    """DuckDB inside this process, out of core."""

    name = "DuckDB"

    def __init__(self, work_dir: Path, *, memory_limit: str, threads: int) -> None:
        import duckdb
        import ibis

        self.errors: tuple[type[Exception], ...] = (duckdb.Error,)
        # Absolute, as DuckDB takes what stands before a colon for the name of an extension.
        work_dir = work_dir.resolve()
        self.file = work_dir / "relational.duckdb"
        self.spill = work_dir / "spill"
        self.con = ibis.duckdb.connect(
            self.file,
            memory_limit=f"{_left_for_duckdb(memory_limit) >> 10}KiB",
            threads=threads,
            temp_directory=str(self.spill),
            preserve_insertion_order=False,
        )

    def read(self, raw: RawFiles) -> "ir.Table":
        """Open files; of CSV and JSON, every column that is no list is text."""
        names = [str(file) for file in raw.files]
        hive = {"hive_partitioning": raw.folder is not None, "hive_types_autocast": False}
        if raw.kind == "parquet":
            return self.con.read_parquet(names, **hive)
        if raw.kind in ("csv", "tsv"):
            sep, found = csv_separator(raw, self.con.con), list(self.sniff(raw))
            form = {"header": True, "sep": sep, "quote": '"', "escape": '"'}
            tables = [
                self.con.read_csv(
                    list(map(str, part.files)),
                    columns=dict.fromkeys(ordered, "VARCHAR"),
                    **form,
                    **hive,
                )
                for ordered, part in files_by_header(raw, found, sep=sep)
            ]
            return in_one_table(tables, [*found, *raw.partitions()])
        columns = {
            name: kind if kind.endswith("[]") else "VARCHAR"
            for name, kind in self.sniff(raw).items()
        }
        kind = "newline_delimited" if raw.kind == "jsonl" else "auto"
        return self.con.read_json(names, columns=columns, format=kind, **hive)

    def sniff(self, raw: RawFiles) -> dict[str, str]:
        """Columns of the first file and their DuckDB types, guessed from its first rows."""
        return sniff_types(raw, self.con.con)

    def keep(self, name: str, expression: "ir.Table") -> "ir.Table":
        """Compute an expression once, to be used several times."""
        return self.con.create_table(name, expression)

    def rows(self, expression: "ir.Table") -> list[dict[str, Any]]:
        """A small result."""
        rows: list[dict[str, Any]] = self._relation(expression).to_arrow_table().to_pylist()
        return rows

    def stream(
        self, expression: "ir.Table", *, rows: int, schema: "pa.Schema | None" = None
    ) -> Iterator["pa.Table"]:
        """A result in its order, in tables of exactly `rows` rows, without holding all."""
        import pyarrow as pa

        reader = self._relation(expression).to_arrow_reader(rows)
        tables = (pa.Table.from_batches([batch]) for batch in reader)
        cast = (table.cast(schema) if schema else table for table in tables)
        return in_row_groups(cast, rows=rows)

    def close(self) -> None:
        """Let go of memory and temporary files."""
        self.con.disconnect()
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self.spill, ignore_errors=True)

    def _relation(self, expression: "ir.Table") -> "duckdb.DuckDBPyRelation":
        import ibis

        # Ibis 12's own to_pyarrow_batches calls a method that DuckDB 2.0 no longer has.
        connection: duckdb.DuckDBPyConnection = self.con.con
        return connection.sql(ibis.to_sql(expression, dialect="duckdb"))


def sniff_types(raw: RawFiles, con: "duckdb.DuckDBPyConnection | None" = None) -> dict[str, str]:
    """What DuckDB takes the columns of the first file for; the text formats say no types."""
    import duckdb

    con = con or duckdb.default_connection()
    name = str(raw.files[0])
    if raw.kind in ("csv", "tsv"):
        found = con.read_csv(
            name, header=True, sep=csv_separator(raw, con), quotechar='"', hive_partitioning=False
        )
    else:
        found = con.read_json(
            name,
            format="newline_delimited" if raw.kind == "jsonl" else "auto",
            hive_partitioning=False,
        )
    return dict(zip(found.columns, map(str, found.types), strict=True))


def csv_separator(raw: RawFiles, con: "duckdb.DuckDBPyConnection | None" = None) -> str:
    """A tabulator in .tsv; in .csv what the first file's first rows are best parted by."""
    import duckdb

    if raw.kind == "tsv":
        return "\t"
    query = "SELECT Delimiter FROM sniff_csv(?)"
    ((separator,),) = (
        (con or duckdb.default_connection()).execute(query, [str(raw.files[0])]).fetchall()
    )
    # With a row too short or too long DuckDB may take the rows for one column.
    return likely_separator(raw.files[0], guess=str(separator))


def in_one_table(tables: list["ir.Table"], columns: list[str]) -> "ir.Table":
    """The rows of all tables, with these columns where there are several."""
    import ibis

    if len(tables) == 1:
        return tables[0]
    return ibis.union(*(table.select(*columns) for table in tables))


def _left_for_duckdb(memory_limit: str) -> int:
    """The limit is for the whole process: what Python holds already is taken off."""
    if memory_limit == "auto":
        limit = available_bytes() // 2 or UNKNOWN_MEMORY_BYTES
    else:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?|)B", memory_limit)
        assert found is not None  # checked with the settings
        limit = int(float(found[1]) * UNITS[found[2]])
    return max(limit - _resident() - STREAM_BYTES, LEAST_BYTES)


def _resident() -> int:
    """Bytes of memory this process holds; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return 0
    import resource

    return int(status.read_text().split()[1]) * resource.getpagesize()
