"""Raw tables as Ibis expressions: found, checked and typed; nothing is computed here.

Every expression is portable Ibis; only reading files and streaming results know DuckDB.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.columns import TimeUnit
from data_prep.records import FeatureType
from data_prep.settings import expand_path

if TYPE_CHECKING:
    import ibis
    import ibis.expr.types as ir
    import pyarrow as pa

EARLIEST_MS = 315_532_800_000  # 1980-01-01
LATEST_MS = 4_102_444_800_000  # 2100-01-01


@dataclass(frozen=True)
class Source:
    """A raw table and what to call it in an error."""

    table: "ir.Table"
    path: str
    setting: str
    """Key of the settings that names it: interactions, items, users, impressions."""

    def column(self, name: str, *, setting: str) -> "ir.Column":
        """The column, or an error that lists those there are."""
        if name not in self.table.columns:
            raise ValueError(
                f"{self.path}: found no column {name!r} (columns: "
                f"{', '.join(self.table.columns)}); correct {self.setting}.{setting}"
            )
        return self.table[name]

    def ids(self, name: str, *, setting: str) -> "ir.Column":
        """A column of ids as int64 or string."""
        column = self.column(name, setting=setting)
        kind = column.type()
        if kind.is_integer():
            return column.cast("int64")
        if kind.is_string() or kind.is_uuid():
            return column.cast("string")
        raise ValueError(
            f"{self.path}: column {name!r} holds {kind}, expected integers or text for "
            f"{self.setting}.{setting}; convert the ids"
        )

    def milliseconds(self, name: str, *, setting: str, unit: TimeUnit) -> "ir.Column":
        """A column of times as unix milliseconds; null where it is no time of 1980 to 2100."""
        import ibis

        column = self.column(name, setting=setting)
        kind = column.type()
        unit_setting = f"{self.setting}.{setting}_unit"
        if kind.is_numeric():
            if unit not in ("s", "ms", "us"):
                raise ValueError(
                    f"{self.path}: column {name!r} holds {kind} and {unit_setting} is {unit!r}, "
                    f"expected a unit for numbers; set {unit_setting} to s, ms or us"
                )
            number = column.cast("float64")
            per_unit = {"s": 1000.0, "ms": 1.0, "us": 0.001}[unit]
            time = (number * per_unit).round()
            # Of the raw number, as rounding fails on nan, infinity and what is far too large.
            plausible = number.between(EARLIEST_MS / per_unit, LATEST_MS / per_unit)
        elif kind.is_timestamp() or kind.is_date() or kind.is_string():
            if unit in ("s", "ms", "us"):
                raise ValueError(
                    f"{self.path}: column {name!r} holds {kind} and {unit_setting} is {unit!r}, "
                    f"expected numbers; set {unit_setting} to auto"
                )
            moment = column.try_cast("timestamp") if kind.is_string() else column
            moment = moment.cast("timestamp") if kind.is_date() else moment
            # Truncated, as DuckDB's epoch carries the fraction of the second and Spark's does not.
            time = moment.truncate("s").epoch_seconds() * 1000 + moment.millisecond()
            plausible = time.between(EARLIEST_MS, LATEST_MS)
        else:
            raise ValueError(
                f"{self.path}: column {name!r} holds {kind}, expected times for "
                f"{self.setting}.{setting}; convert it to a timestamp"
            )
        return ibis.ifelse(plausible, time, ibis.null()).cast("int64")

    def positives(
        self, name: str | None, *, setting: str, positive_from: float | None
    ) -> "ir.Column":
        """1 where the label is positive, 0 where not, null where it is neither."""
        import ibis

        if name is None:
            return ibis.literal(1, "int8")
        column = self.column(name, setting=setting)
        kind = column.type()
        if not (kind.is_numeric() or kind.is_boolean()):
            raise ValueError(
                f"{self.path}: column {name!r} holds {kind}, expected numbers or booleans for "
                f"{self.setting}.{setting}; convert it"
            )
        number = column.cast("float64")
        if positive_from is None:
            valid, positive = number.isin([0.0, 1.0]), number == 1
        else:
            valid, positive = ~(number.isnan() | number.isinf()), number >= positive_from
        return ibis.ifelse(valid, positive.cast("int8"), ibis.null()).cast("int8")

    def weights(self, name: str) -> "ir.Column":
        """Event weights; null where they are negative or not finite."""
        import ibis

        column = self.column(name, setting="weight")
        if not column.type().is_numeric():
            raise ValueError(
                f"{self.path}: column {name!r} holds {column.type()}, expected numbers for "
                f"{self.setting}.weight; convert it"
            )
        number = column.cast("float64")
        return ibis.ifelse(number.between(0, 1e30), number, ibis.null()).cast("float32")

    def features(self, features: dict[str, FeatureType]) -> dict[str, "ir.Column"]:
        """Feature columns as float64, string or list of string."""
        typed: dict[str, ir.Column] = {}
        for name, kind in features.items():
            column = self.column(name, setting="features")
            found = column.type()
            if kind == "numeric":
                fits, target = found.is_numeric() or found.is_boolean(), "float64"
            elif kind == "categorical":
                fits, target = not found.is_nested(), "string"
            else:
                fits, target = found.is_array(), "array<string>"
            if not fits:
                raise ValueError(
                    f"{self.path}: column {name!r} holds {found}, expected something "
                    f"{kind} for {self.setting}.features; choose another type or convert it"
                )
            typed[name] = column.cast(target)
        return typed


def source_files(path: str, *, setting: str) -> list[Path]:
    """The files a path or pattern stands for, in order."""
    expanded = expand_path(path, setting=f"{setting}.path")
    files = sorted(Path(found) for found in glob.glob(str(expanded), recursive=True))  # noqa: PTH207 (absolute patterns)
    if not files:
        raise FileNotFoundError(
            f"{expanded}: found no such file, expected {setting}; correct {setting}.path"
        )
    return files


def open_source(
    con: "ibis.BaseBackend", path: str, *, setting: str, unique: str | None = None
) -> Source:
    """Open a raw table; with `unique`, refuse repeated values in that column of ids."""
    import duckdb

    files = source_files(path, setting=setting)
    suffix = files[0].name.removesuffix(".gz").rpartition(".")[2].lower()
    readers = {
        "parquet": con.read_parquet,
        "csv": con.read_csv,
        "tsv": con.read_csv,
        "json": con.read_json,
        "jsonl": con.read_json,
    }
    shown = str(files[0]) if len(files) == 1 else f"{path} ({len(files)} files)"
    if suffix not in readers:
        raise ValueError(
            f"{shown}: found the suffix {suffix!r}, expected one of {', '.join(readers)}; "
            f"correct {setting}.path"
        )
    try:
        table = readers[suffix]([str(file) for file in files])
    except duckdb.Error as error:
        raise ValueError(
            f"{shown}: cannot be read as {suffix} ({str(error).splitlines()[0]}); "
            f"correct the file or {setting}.path"
        ) from error
    source = Source(table=table, path=shown, setting=setting)
    if unique is not None:
        ids = source.ids(unique, setting=setting.removesuffix("s"))
        repeated = (
            table.select(id=ids)
            .filter(lambda row: row.id.notnull())
            .group_by("id")
            .aggregate(times=lambda row: row.count())
            .filter(lambda row: row.times > 1)
        )
        count = int(repeated.count().to_pyarrow().as_py())
        if count:
            examples = repeated.order_by("id").limit(3).id.to_pyarrow().to_pylist()
            raise ValueError(
                f"{shown}: found {count} ids more than once in column {unique!r} (such as "
                f"{', '.join(map(str, examples))}), expected each once; remove the repeated rows"
            )
    return source


def stream(
    con: "ibis.BaseBackend", expression: "ir.Table", *, rows: int, schema: "pa.Schema | None" = None
) -> Iterator["pa.Table"]:
    """Results in tables of exactly `rows` rows (the last may be shorter), without holding all."""
    import ibis
    import pyarrow as pa

    # Ibis 12's own to_pyarrow_batches calls a method that DuckDB 2.0 no longer has.
    reader = con.con.sql(ibis.to_sql(expression, dialect="duckdb")).to_arrow_reader(rows)
    held: list[pa.Table] = []
    count = 0
    for batch in reader:
        table = pa.Table.from_batches([batch])
        held.append(table.cast(schema) if schema else table)
        count += batch.num_rows
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows).combine_chunks()
            held = [joined.slice(rows)]
            count -= rows
    if count:
        yield pa.concat_tables(held).combine_chunks()
