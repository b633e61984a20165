"""Rows with ids, times and labels one can use; the others are set aside and counted by cause."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.columns import ImpressionColumns, InteractionColumns
from data_prep.engines import Engine, count_rows
from data_prep.manifest import FilterCount
from data_prep.outcomes import outcomes_of, typed_outcomes
from data_prep.parquet_files import ROW_GROUP_ROWS, write_parquet
from data_prep.records import QUARANTINE_DIR, FeatureType
from data_prep.sources import MISREAD_SHARE, Source, open_source, refuse_misread_ids
from data_prep.text_lists import check_lists

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

    from data_prep.privacy import Privacy

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 100
"""Rows kept for each cause in quarantine/*.parquet, to look at."""


@dataclass
class Ledger:
    """What happened to the rows."""

    quarantine: dict[str, int] = field(default_factory=dict)
    filters: list[FilterCount] = field(default_factory=list)

    def passed(self, step: str, *, rows_in: int, rows_out: int) -> None:
        """Note what a step let through."""
        self.filters.append(FilterCount(step=step, rows_in=rows_in, rows_out=rows_out))
        logger.info("%s: %s rows in, %s out", step, f"{rows_in:,}", f"{rows_out:,}")

    def set_aside(self, causes: dict[str, int], *, rows: int) -> None:
        """Count records of a table of so many rows by cause."""
        for cause, count in causes.items():
            self.quarantine[cause] = self.quarantine.get(cause, 0) + count
            share = f"{100 * count / rows:.2g} %"
            logger.warning(
                "quarantined %s: %s of %s rows, %s", cause, f"{count:,}", f"{rows:,}", share
            )


@dataclass(frozen=True)
class Log:
    """A raw log, and which of its rows can be used."""

    source: Source
    columns: InteractionColumns | ImpressionColumns
    typed: "ir.Table"
    """user_id, item_id, time, label, weight or further outcomes and context features; null where
    they are bad."""
    good: "ir.Table"
    """The rows without a bad value; their items may be unknown."""
    usable: "ir.Table"
    """The same with item_row instead of item_id, of known items."""

    @property
    def features(self) -> dict[str, FeatureType]:
        """Of the context; the interactions have none."""
        return self.columns.features if isinstance(self.columns, ImpressionColumns) else {}


def open_log(
    engine: Engine,
    columns: InteractionColumns | ImpressionColumns,
    *,
    setting: str,
    privacy: "Privacy",
    catalogue: "ir.Table",
) -> Log:
    """Open the interactions or the impressions; `catalogue` has every item's id and row."""
    source = open_log_source(engine, columns, setting=setting)
    source = privacy.items(privacy.users(source, columns.user), columns.item)
    typed = typed_log(source, columns, item_id=catalogue.item_id)
    if source.is_text:
        typed = engine.keep(f"{setting}_typed", typed)
    needed = [typed[name] for name in ("user_id", "item_id", "time", "label")]
    needed += [typed.weight] if "weight" in typed.columns else []
    outcomes = outcomes_of(columns)
    needed += [typed[one.name] for one in outcomes]
    raw = ["raw_time", "raw_label", *(one.raw for one in outcomes)]
    good = typed.filter([column.notnull() for column in needed]).drop(*raw)
    # The others are counted by their absence.
    joined = good.inner_join(catalogue, "item_id")
    rest = joined.drop("user_id", "item_row", "item_id").columns
    usable = joined.select("user_id", "item_row", *rest)
    return Log(source, columns, typed, good, usable)


def open_log_source(
    engine: Engine, columns: InteractionColumns | ImpressionColumns, *, setting: str
) -> Source:
    """The raw table of a log."""
    source = open_source(engine, columns, setting=setting)
    if source.is_text and not engine.rows(source.table.limit(1)):
        raise _no_rows(source)  # or its columns, which are text then, would be called wrong
    return source


def set_bad_rows_aside(
    engine: Engine,
    log: Log,
    *,
    usable_rows: int,
    catalogue: "ir.Table",
    dataset_dir: Path,
    ledger: Ledger,
) -> None:
    """Count the rows that could not be used by cause, and keep some to look at.

    A clean log costs no more than counting its rows.
    """
    setting = log.source.setting
    rows_in = count_rows(engine, log.typed if log.source.is_text else log.source.table)
    if rows_in == 0:
        raise _no_rows(log.source)
    if rows_in > usable_rows:
        bad = _with_cause(log, catalogue)
        counts = bad.group_by("cause").aggregate(rows=lambda row: row.count()).order_by("cause")
        causes = {row["cause"]: int(row["rows"]) for row in engine.rows(counts)}
        _refuse_misread(engine, log, causes=causes, rows=rows_in, bad=bad)
        raw = [one.raw for one in outcomes_of(log.columns)]
        order = ["user_id", "item_id", "raw_time", "raw_label", *raw]
        path = dataset_dir / QUARANTINE_DIR / f"{setting}.parquet"
        write_samples(engine, bad, order=order, path=path)
        ledger.set_aside(
            {f"{setting}/{cause}": count for cause, count in causes.items()}, rows=rows_in
        )
    ledger.passed(f"{setting}: usable rows", rows_in=rows_in, rows_out=usable_rows)


def _no_rows(source: Source) -> ValueError:
    return ValueError(f"{source.path}: found no rows, expected {source.setting}; give a log")


def _with_cause(log: Log, catalogue: "ir.Table") -> "ir.Table":
    """The rows that cannot be used, each with its first cause."""
    import ibis

    outcomes = outcomes_of(log.columns)
    known = catalogue.select(known_id="item_id")
    joined = log.typed.left_join(known, log.typed.item_id == known.known_id)
    cause = ibis.cases(
        (joined.user_id.isnull() | joined.item_id.isnull(), "null_id"),
        (joined.time.isnull(), "not_a_time"),
        (joined.label.isnull(), "not_a_label"),
        *([(joined.weight.isnull(), "not_a_weight")] if "weight" in joined.columns else []),
        *((joined[one.name].isnull(), one.cause) for one in outcomes),
        (joined.known_id.isnull(), "unknown_item"),
        else_=ibis.null(),
    )
    raw = ["raw_time", "raw_label", *(one.raw for one in outcomes)]
    found = joined.select("user_id", "item_id", *raw, cause=cause.cast("string"))
    return found.filter(found.cause.notnull())


def typed_log(
    source: Source, columns: InteractionColumns | ImpressionColumns, *, item_id: "ir.Column"
) -> "ir.Table":
    """`Log.typed`, of items whose ids are of the type of `item_id`; nothing is computed."""
    import ibis

    label = columns.label
    typed = {
        "user_id": source.ids(columns.user, setting="user"),
        "item_id": source.ids(columns.item, setting="item"),
        "time": source.milliseconds(columns.time, setting="time", unit=columns.time_unit),
        "label": source.positives(label, setting="label", positive_from=columns.positive_from),
        "raw_time": source.table[columns.time],
        "raw_label": source.table[label] if label else ibis.null().cast("string"),
    }
    here, there = typed["item_id"].type(), item_id.type()
    if here.is_string() != there.is_string():
        raise ValueError(
            f"{source.path}: column {columns.item!r} holds {here}, but the catalogue's item ids "
            f"are {there}; expected one type, convert one of the tables"
        )
    if isinstance(columns, InteractionColumns):
        typed |= {"weight": source.weights(columns.weight)} if columns.weight else {}
    else:
        typed |= dict(typed_outcomes(source, columns)) | source.features(columns.features)
        check_lists(source, columns.features)
    return source.table.select(**typed)


def _refuse_misread(
    engine: Engine, log: Log, *, causes: dict[str, int], rows: int, bad: "ir.Table"
) -> None:
    """Raise where a whole column is not what the settings say."""
    source, columns = log.source, log.columns

    def examples(name: str) -> str:
        column = bad.select(name).distinct().order_by(name)
        return ", ".join(str(row[name]) for row in engine.rows(column.limit(4)))

    if causes.get("null_id", 0) > MISREAD_SHARE * rows:
        for setting in ("user", "item"):
            column = getattr(columns, setting)
            refuse_misread_ids(engine, source, column, setting=setting, rows=rows)
    where = f"{source.path}: column"
    if (count := causes.get("not_a_time", 0)) > MISREAD_SHARE * rows:
        raise ValueError(
            f"{where} {columns.time!r}: {count:,} of {rows:,} values (such as "
            f"{examples('raw_time')}) are no times of 1980 to 2100 when read as "
            f"{columns.time_unit!r}; correct {source.setting}.time or time_unit"
        )
    if (count := causes.get("not_a_label", 0)) > MISREAD_SHARE * rows:
        raise ValueError(
            f"{where} {columns.label!r}: {count:,} of {rows:,} values (such as "
            f"{examples('raw_label')}) are not 0 or 1; correct {source.setting}.label or set "
            f"{source.setting}.positive_from"
        )
    for one in outcomes_of(columns):
        if (count := causes.get(one.cause, 0)) > MISREAD_SHARE * rows:
            raise ValueError(
                f"{where} {one.column!r}: {count:,} of {rows:,} values (such as "
                f"{examples(one.raw)}) are no {one.expected}; correct "
                f"{source.setting}.{one.setting}"
            )
    if causes.get("unknown_item", 0) == rows:
        raise ValueError(
            f"{where} {columns.item!r}: none of {rows:,} rows has an item of the catalogue, "
            f"expected ids of items.item; correct {source.setting}.item or items.item"
        )


def write_samples(engine: Engine, bad: "ir.Table", *, order: list[str], path: Path) -> None:
    """Keep some rows of every cause, to look at; `order` are the columns beside the cause."""
    import ibis
    import pyarrow as pa

    rank = ibis.row_number().over(group_by=bad.cause, order_by=[bad[name] for name in order])
    samples = bad.mutate(rank=rank).filter(lambda row: row["rank"] < SAMPLE_ROWS)
    ordered = samples.select("cause", *order).order_by(["cause", *order])
    schema = ordered.schema().to_pyarrow()
    tables = list(engine.stream(ordered, rows=ROW_GROUP_ROWS, schema=schema))
    # Spelled by Arrow, as engines spell times and floats in different ways.
    for name in (name for name in order if name.startswith("raw_")):
        if pa.types.is_timestamp(kind := schema.field(name).type):
            schema = _retyped(schema, name, pa.timestamp("us", kind.tz))
            tables = [table.cast(schema) for table in tables]
        schema = _retyped(schema, name, pa.string())
        tables = [table.cast(schema) for table in tables]
    write_parquet(tables, path, schema=schema)


def _retyped(schema: "pa.Schema", name: str, kind: "pa.DataType") -> "pa.Schema":
    return schema.set(schema.get_field_index(name), schema.field(name).with_type(kind))
