"""Spark as the engine of the relational step: `engine: spark`, `pip install triptych[spark]`.

The session is the one that spark-submit made, or a new one on this machine. Results come back as
sorted Parquet in the work folder, which therefore must lie where every executor can write.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.csv_headers import files_by_header
from data_prep.engines import csv_separator, in_one_table, sniff_types
from data_prep.parquet_files import in_row_groups, read_in_order
from data_prep.raw_files import RawFiles

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)

NEEDED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "true",
}
"""Without these the dataset would not be DuckDB's byte for byte."""
LISTS = {"VARCHAR": "string", "FLOAT": "double", "DOUBLE": "double"}
"""DuckDB's type of a list's members to Spark's; every other number is a bigint."""


class SparkEngine:
    """Spark, for logs that outgrow one machine."""

    name = "Spark"

    def __init__(self, conf: dict[str, str], *, spill_dir: Path) -> None:
        try:
            import pyspark
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ValueError(
                f"engine: found spark, but pyspark cannot be imported ({error}); "
                "pip install 'triptych[spark]', or choose engine duckdb"
            ) from error
        import ibis
        from py4j.protocol import Py4JError

        self.errors: tuple[type[Exception], ...] = (PySparkException, Py4JError)
        self.spill = spill_dir
        self.count = 0
        builder = SparkSession.builder.appName("triptych")
        for key, value in ({"spark.ui.showConsoleProgress": "false"} | conf).items():
            builder = builder.config(key, value)
        try:
            self.session = builder.getOrCreate()
        except (RuntimeError, *self.errors) as error:  # RuntimeError: no Java
            raise ValueError(
                f"engine: Spark {pyspark.__version__} does not start "
                f"({str(error).splitlines()[0]}); install Java 17 or newer, or correct spark_conf"
            ) from error
        for key, value in NEEDED.items():
            self.session.conf.set(key, value)
        self.con = ibis.pyspark.connect(self.session)

    def read(self, raw: RawFiles) -> "ir.Table":
        """Open files; of CSV and JSON, every column that is no list is text."""
        reader = self.session.read
        if raw.folder is not None:
            reader = reader.option("basePath", str(raw.folder))
        names = [str(file) for file in raw.files]
        if raw.kind == "parquet":
            frame = reader.parquet(*names)
        elif raw.kind in ("csv", "tsv"):
            sep, columns = csv_separator(raw), list(self.sniff(raw))
            tables = []
            for number, (ordered, part) in enumerate(files_by_header(raw, columns, sep=sep)):
                frame = reader.csv(
                    list(map(str, part.files)),
                    schema=_text_schema(dict.fromkeys(ordered, "VARCHAR")),
                    sep=sep,
                    header=True,
                    quote='"',
                    escape='"',
                    # A text may hold line breaks; a log has no texts, and its files can be cut.
                    multiLine=raw.setting in ("items", "users"),
                )
                tables.append(self._table(frame, f"{raw.setting}_raw_{number}"))
            return in_one_table(tables, [*columns, *raw.partitions()])
        else:
            whole = raw.kind == "json" and _begins_with_a_bracket(raw.files[0])
            frame = reader.json(names, schema=_text_schema(self.sniff(raw)), multiLine=whole)
        return self._table(frame, f"{raw.setting}_raw")

    def sniff(self, raw: RawFiles) -> dict[str, str]:
        """Columns of the first file and their DuckDB types, guessed from its first rows."""
        return sniff_types(raw)

    def keep(self, name: str, expression: "ir.Table") -> "ir.Table":
        """Compute an expression once, to be used several times."""
        folder = self.spill / f"kept-{name}"
        self._frame(expression).write.mode("overwrite").parquet(str(folder))
        return self._table(self.session.read.parquet(str(folder)), name)

    def rows(self, expression: "ir.Table") -> list[dict[str, Any]]:
        """A small result."""
        return [row.asDict() for row in self._frame(expression).collect()]

    def stream(
        self, expression: "ir.Table", *, rows: int, schema: "pa.Schema | None" = None
    ) -> Iterator["pa.Table"]:
        """A result in its order, in tables of exactly `rows` rows, without holding all.

        Spark sorts into files whose names are in order of their rows.
        """
        self.count += 1
        folder = self.spill / f"sorted-{self.count}"
        self._frame(expression).write.mode("overwrite").parquet(str(folder))
        return in_row_groups(self._read_back(folder, schema), rows=rows)

    def close(self) -> None:
        """Let go of temporary files; the session stays, as others may use it."""
        shutil.rmtree(self.spill, ignore_errors=True)

    def _read_back(self, folder: Path, schema: "pa.Schema | None") -> Iterator["pa.Table"]:
        for file in sorted(folder.glob("part-*.parquet")):
            for table in read_in_order(file):
                yield table.cast(schema) if schema else table
        shutil.rmtree(folder)

    def _frame(self, expression: "ir.Table") -> "DataFrame":
        return self.session.sql(self.con.compile(expression))

    def _table(self, frame: "DataFrame", name: str) -> "ir.Table":
        view = f"triptych_{name}"
        frame.createOrReplaceTempView(view)
        return self.con.table(view)


def _text_schema(types: dict[str, str]) -> str:
    """Spark's schema of text files: lists are lists, everything else is text."""
    return ", ".join(f"`{name}` {_spark_type(kind)}" for name, kind in types.items())


def _spark_type(kind: str) -> str:
    if not kind.endswith("[]"):
        return "string"
    inner = kind.removesuffix("[]")
    return f"array<{LISTS.get(inner, 'bigint') if not inner.endswith('[]') else 'string'}>"


def _begins_with_a_bracket(file: Path) -> bool:
    import gzip

    with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
        return stream.read(64).lstrip().startswith(b"[")
