"""Raw tables as Ibis expressions: found, checked and typed; nothing is computed here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_prep.columns import Columns, ReadAs, TimeUnit
from data_prep.csv_headers import likely_separator
from data_prep.engines import Engine, count_rows, csv_separator, first_line
from data_prep.feature_types import feature_fits, typed_feature
from data_prep.raw_files import HIVE_NULL, RawFiles, find_files
from data_prep.raw_rows import Cell, first_cell, is_no_number, odd_line
from data_prep.records import FeatureType

if TYPE_CHECKING:
    import ibis.expr.types as ir

EARLIEST_MS = 315_532_800_000  # 1980-01-01
LATEST_MS = 4_102_444_800_000  # 2100-01-01
TEXT_TYPES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT"), "int64"),
    **dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), "float64"),
    "BOOLEAN": "boolean",
}
"""What DuckDB takes a column of text for to the type it gets; every other one stays text."""
GIVEN = "as given: "
"""Before a column's name: the text that its numbers were made of."""
ROWS_SNIFFED = 20_480
"""Rows by which DuckDB guesses how a CSV is written and what its columns hold."""
MISREAD_SHARE = 0.5
"""With more than this share of bad ids, times or labels, the column was misread: an error."""


@dataclass(frozen=True)
class Source:
    """A raw table and what to call it in an error."""

    table: "ir.Table"
    path: str
    setting: str
    """Key of the settings that names it: interactions, items, users, impressions."""
    given: "ir.Table"
    """The same with the text behind its numbers too, parsed anew with every look."""
    raw: RawFiles
    """Where its cells lie, to name one in an error."""

    @property
    def is_text(self) -> bool:
        """Whether a look at it costs parsing text anew."""
        return self.raw.kind != "parquet"

    def column(self, name: str, *, setting: str) -> "ir.Column":
        """The column, or an error that lists those there are."""
        if name not in self.table.columns:
            raise ValueError(
                f"{self.path}: found no column {name!r} (columns: "
                f"{', '.join(self.table.columns)}); correct {self.setting}.{setting}"
            )
        return self.table[name]

    def with_given(self) -> "Source":
        """The same with `given` as its table, for `as_given`."""
        return replace(self, table=self.given)

    def as_given(self, name: str) -> "ir.Column":
        """The column before its text became numbers, where the table knows it."""
        return self.table[GIVEN + name if GIVEN + name in self.table.columns else name]

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
            per_unit = {"s": 1000.0, "ms": 1.0, "us": 0.001}[unit]
            number = column if kind.is_integer() else column.cast("float64")
            # Of the raw number, as rounding fails on nan, infinity and what is far too large.
            inside = is_between(number, EARLIEST_MS / per_unit, LATEST_MS / per_unit)
            number = ibis.ifelse(inside, number, ibis.null())
            if kind.is_integer() and unit != "us":
                return number.cast("int64") * int(per_unit)
            return (number.cast("float64") * per_unit).round().cast("int64")
        elif kind.is_timestamp() or kind.is_date() or kind.is_string():
            if unit in ("s", "ms", "us"):
                raise ValueError(
                    f"{self.path}: column {name!r} holds {kind} and {unit_setting} is {unit!r}, "
                    f"expected numbers; set {unit_setting} to auto"
                )
            moment = _moment_of_text(column) if kind.is_string() else column
            moment = moment.cast("timestamp")
            # Truncated, as DuckDB's epoch carries the fraction of the second and Spark's does not.
            time = moment.truncate("s").epoch_seconds() * 1000 + moment.millisecond()
            inside = time.between(EARLIEST_MS, LATEST_MS)
            return ibis.ifelse(inside, time, ibis.null()).cast("int64")
        raise ValueError(
            f"{self.path}: column {name!r} holds {kind}, expected times for "
            f"{self.setting}.{setting}; convert it to a timestamp"
        )

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
            raise self.no_numbers(name, setting=setting, expected="numbers or booleans")
        number = column.cast("float64")
        if positive_from is None:
            valid, positive = is_between(number, 0, 1) & number.isin([0.0, 1.0]), number == 1
        else:
            valid, positive = is_between(number, -1e308, 1e308), number >= positive_from
        return ibis.ifelse(valid, positive.cast("int8"), ibis.null()).cast("int8")

    def weights(self, name: str) -> "ir.Column":
        """Event weights; null where they are negative or not finite."""
        import ibis

        column = self.column(name, setting="weight")
        if not column.type().is_numeric():
            raise self.no_numbers(name, setting="weight", expected="numbers")
        number = column.cast("float64")
        # Of -0.0 and 0.0, which are equal, the order would depend on the engine.
        inside = is_between(number, 0, 1e30)
        return ibis.ifelse(inside, number.abs(), ibis.null()).cast("float32")

    def features(self, features: dict[str, FeatureType]) -> dict[str, "ir.Column"]:
        """Feature columns as float64, string or list of string.

        Lists that a text column holds as JSON stay text, for `data_prep/text_lists.py`.
        """
        typed: dict[str, ir.Column] = {}
        for name, kind in features.items():
            column = self.column(name, setting="features")
            if kind == "numeric" and not feature_fits(column, kind):
                raise self.no_numbers(name, setting="features", expected="something numeric")
            if not feature_fits(column, kind):
                raise ValueError(
                    f"{self.path}: column {name!r} holds {column.type()}, expected something "
                    f"{kind} for {self.setting}.features; choose another type or convert it"
                )
            typed[name] = typed_feature(column, kind)
        return typed

    def first_cell(
        self, name: str, *, is_meant: Callable[[object], bool], rows: int | None = None
    ) -> Cell | None:
        """The first cell of a column that is meant, as it stands in the file."""
        sep = csv_separator(self.raw) if self.raw.kind in ("csv", "tsv") else ","
        return first_cell(self.raw, name, sep=sep, is_meant=is_meant, rows=rows)

    def no_numbers(self, name: str, *, setting: str, expected: str) -> ValueError:
        """The error for a column that holds something else, with the first such cell."""
        kind = self.table[name].type()
        found, advice = "", "convert it"
        if kind.is_string():
            cell = self.first_cell(name, is_meant=is_no_number)
            if cell is not None:
                found = f", but {cell}"
                advice = "correct the cells that hold no number, or empty them"
            elif self.is_text:
                found = ", but its first rows are empty"
                advice = "give the table as Parquet, where a column has a type"
        if setting == "features":
            advice += ", or choose categorical"
        return ValueError(
            f"{self.path}: column {name!r} holds {kind}, expected {expected} for "
            f"{self.setting}.{setting}{found}; {advice}"
        )


def is_between(number: "ir.NumericColumn", low: float, high: float) -> "ir.BooleanColumn":
    """Whether a number is one and lies between two; as integers where it is an integer.

    Parquet's statistics leave nan out, and DuckDB trusts them: a range that covers them is true
    and `isnan` is false, whatever the rows hold. It does not look through a product.
    """
    if number.type().is_integer():
        return number.between(int(low), int(high))
    return (number * 0 == 0) & number.between(low, high)


def _moment_of_text(text: "ir.StringColumn") -> "ir.TimestampColumn":
    """ISO 8601 as a moment, in UTC where no zone is given; null where it is something else.

    What begins with no date is refused first: Spark would take `10:00` for a time of today.
    """
    import ibis

    dated = ibis.ifelse(text.like("____-__-__%"), text, ibis.null())
    return dated.try_cast("timestamp('UTC')")


def open_source(
    engine: Engine, columns: Columns, *, setting: str, unique: str | None = None
) -> Source:
    """Open a raw table; with `unique`, refuse repeated values in that column of ids."""
    raw = find_files(columns.path, setting=setting)
    try:
        given = _typed(engine, raw, columns.read_as())
    except engine.errors as error:
        raise ValueError(
            f"{raw.shown}: cannot be read as {raw.kind} ({_why(error, raw)}); correct the file or "
            f"{setting}.path"
        ) from error
    is_text = raw.kind != "parquet"
    table = given.drop(*(name for name in given.columns if name.startswith(GIVEN)))
    if unique is not None and is_text:
        table = engine.keep(f"{setting}_parsed", table)
    source = Source(table=table, path=raw.shown, setting=setting, given=given, raw=raw)
    if unique is not None:
        _refuse_repeated(engine, source, column=unique)
    return source


def _why(error: Exception, raw: RawFiles) -> str:
    """What the engine says; of CSV files also the line, which it does not say while guessing."""
    if raw.kind in ("csv", "tsv"):
        for file in raw.files:
            sep = "\t" if raw.kind == "tsv" else likely_separator(file)
            if (odd := odd_line(file, sep=sep, rows=2 * ROWS_SNIFFED)) is not None:
                return odd if len(raw.files) == 1 else f"{file}: {odd}"
    return first_line(error)


def _typed(engine: Engine, raw: RawFiles, read_as: Mapping[str, ReadAs]) -> "ir.Table":
    """The files' columns; text becomes numbers by the same rule on every engine."""
    import ibis

    table = engine.read(raw)
    columns: dict[str, ir.Value] = {}
    if raw.kind != "parquet":
        for name, found in engine.sniff(raw).items():
            # Times stay text: Source.milliseconds reads them.
            kind, wanted = TEXT_TYPES.get(found.partition("(")[0]), read_as.get(name)
            if kind is None or wanted == "text":
                continue
            if kind == "int64" and wanted == "number":  # rows further down may have fractions
                kind = "float64"
            typed = _from_text(table[name], kind)
            columns[name] = _category(table[name], typed) if wanted == "category" else typed
    for name, is_integer in raw.partitions().items():
        given = ibis.ifelse(table[name].cast("string") == HIVE_NULL, ibis.null(), table[name])
        columns[name] = given.cast("int64" if is_integer else "string")
    return table.mutate(**columns, **{GIVEN + name: table[name] for name in columns})


def _from_text(text: "ir.StringColumn", kind: str) -> "ir.Column":
    """Null where it is nothing of that kind."""
    import ibis

    # Stripped, or DuckDB has its CSV reader cast, which fails where try_cast does not.
    text = text.strip()
    if kind == "int64":  # DuckDB alone rounds 3.5, and reads 0x1F and 1_000
        text = ibis.ifelse(text.re_search("^[+-]?[0-9]+$"), text, ibis.null())
    return text.try_cast(kind)


def _category(text: "ir.StringColumn", typed: "ir.Column") -> "ir.Column":
    """What is typed, spelled as in a format with types; what is not, as it stands."""
    import ibis

    return ibis.ifelse(typed.isnull(), text.strip().nullif(""), typed_feature(typed, "categorical"))


def refuse_misread_ids(
    engine: Engine, source: Source, column: str, *, setting: str, rows: int
) -> None:
    """Raise where most ids are text in a column whose first rows hold integers."""
    seen = source.with_given()
    text, number = seen.as_given(column), seen.table[column]
    if text.equals(number):
        return
    misread = seen.table.filter(text.notnull() & number.isnull()).select(text=text)
    if (count := count_rows(engine, misread)) > MISREAD_SHARE * rows:
        examples = engine.rows(misread.order_by("text").limit(4))
        raise ValueError(
            f"{source.path}: column {column!r}: {count:,} of {rows:,} values (such as "
            f"{', '.join(row['text'] for row in examples)}) are no integers, expected these as in "
            f"its first rows; give the table as Parquet with ids of text, or correct "
            f"{source.setting}.{setting}"
        )


def _refuse_repeated(engine: Engine, source: Source, *, column: str) -> None:
    ids = source.ids(column, setting=source.setting.removesuffix("s"))
    repeated = (
        source.table.select(id=ids)
        .filter(lambda row: row.id.notnull())
        .group_by("id")
        .aggregate(times=lambda row: row.count())
        .filter(lambda row: row.times > 1)
    )
    if count := count_rows(engine, repeated):
        examples = [row["id"] for row in engine.rows(repeated.order_by("id").limit(3))]
        raise ValueError(
            f"{source.path}: found {count} ids more than once in column {column!r} (such as "
            f"{', '.join(map(str, examples))}), expected each once; remove the repeated rows"
        )
