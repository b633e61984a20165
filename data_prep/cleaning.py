"""Rows with ids, times and labels one can use; the others are set aside and counted by cause."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.columns import ImpressionColumns, InteractionColumns
from data_prep.manifest import FilterCount
from data_prep.records import QUARANTINE_DIR
from data_prep.sources import Source, open_source

if TYPE_CHECKING:
    import ibis
    import ibis.expr.types as ir

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 100
"""Rows kept for each cause in quarantine/*.parquet, to look at."""
MISREAD_SHARE = 0.5
"""With more than this share of bad times or labels, the column was misread: an error."""


@dataclass
class Ledger:
    """What happened to the rows."""

    quarantine: dict[str, int] = field(default_factory=dict)
    filters: list[FilterCount] = field(default_factory=list)

    def passed(self, step: str, *, rows_in: int, rows_out: int) -> None:
        """Note what a step let through."""
        self.filters.append(FilterCount(step=step, rows_in=rows_in, rows_out=rows_out))
        logger.info("%s: %s rows in, %s out", step, f"{rows_in:,}", f"{rows_out:,}")

    def set_aside(self, causes: dict[str, int]) -> None:
        """Count records by cause."""
        for cause, count in causes.items():
            self.quarantine[cause] = self.quarantine.get(cause, 0) + count
            logger.warning("quarantined %s: %s", cause, f"{count:,}")


def count_rows(table: "ir.Table") -> int:
    """How many rows an expression has."""
    return int(table.count().to_pyarrow().as_py())


def clean_log(
    con: "ibis.BaseBackend",
    columns: InteractionColumns | ImpressionColumns,
    *,
    setting: str,
    catalogue: "ir.Table",
    dataset_dir: Path,
    ledger: Ledger,
) -> "ir.Table":
    """The usable rows: user_id, item_row, time, label, and weight or context features.

    Args:
        con: The database.
        columns: What the raw columns mean.
        setting: interactions or impressions.
        catalogue: item_id and item_row of every item.
        dataset_dir: Rows to look at are written to its quarantine folder.
        ledger: Told of what was set aside.
    """
    import ibis

    source = open_source(con, columns.path, setting=setting)
    raw = source.table.select(**_typed_columns(source, columns, catalogue=catalogue))
    known = catalogue.select(known_id="item_id", item_row="item_row")
    joined = raw.left_join(known, raw.item_id == known.known_id).drop("known_id")
    cause = ibis.cases(
        (joined.user_id.isnull() | joined.item_id.isnull(), "null_id"),
        (joined.time.isnull(), "not_a_time"),
        (joined.label.isnull(), "not_a_label"),
        *([(joined.weight.isnull(), "not_a_weight")] if "weight" in joined.columns else []),
        (joined.item_row.isnull(), "unknown_item"),
        else_=ibis.null(),
    )
    staged = con.create_table(f"{setting}_staged", joined.mutate(cause=cause.cast("string")))
    rows_in = count_rows(staged)
    counts = (
        staged.filter(staged.cause.notnull())
        .group_by("cause")
        .aggregate(rows=lambda row: row.count())
        .order_by("cause")
        .to_pyarrow()
        .to_pylist()
    )
    causes = {row["cause"]: int(row["rows"]) for row in counts}
    _refuse_misread(source, columns, causes=causes, rows=rows_in, staged=staged)
    if causes:
        _write_samples(con, staged, path=dataset_dir / QUARANTINE_DIR / f"{setting}.parquet")
    ledger.set_aside({f"{setting}/{cause}": count for cause, count in causes.items()})
    ledger.passed(
        f"{setting}: usable rows", rows_in=rows_in, rows_out=rows_in - sum(causes.values())
    )
    clean = staged.filter(staged.cause.isnull())
    return clean.drop("cause", "item_id", "raw_time", "raw_label")


def _typed_columns(
    source: Source, columns: InteractionColumns | ImpressionColumns, *, catalogue: "ir.Table"
) -> dict[str, "ir.Value"]:
    import ibis

    label = columns.label
    typed = {
        "user_id": source.ids(columns.user, setting="user"),
        "item_id": source.ids(columns.item, setting="item"),
        "time": source.milliseconds(columns.time, setting="time", unit=columns.time_unit),
        "label": source.positives(label, setting="label", positive_from=columns.positive_from),
        "raw_time": source.table[columns.time].cast("string"),
        "raw_label": (source.table[label].cast("string") if label else ibis.null().cast("string")),
    }
    here, there = typed["item_id"].type(), catalogue.item_id.type()
    if here.is_string() != there.is_string():
        raise ValueError(
            f"{source.path}: column {columns.item!r} holds {here}, but the catalogue's item ids "
            f"are {there}; expected one type, convert one of the tables"
        )
    if isinstance(columns, InteractionColumns):
        return typed | ({"weight": source.weights(columns.weight)} if columns.weight else {})
    return typed | source.features(columns.features)


def _refuse_misread(
    source: Source,
    columns: InteractionColumns | ImpressionColumns,
    *,
    causes: dict[str, int],
    rows: int,
    staged: "ir.Table",
) -> None:
    """Raise where a whole column is not what the settings say."""
    if rows == 0:
        raise ValueError(f"{source.path}: found no rows, expected {source.setting}; give a log")

    def examples(name: str) -> str:
        column = staged.filter(staged.cause.notnull()).select(name).distinct().order_by(name)
        return ", ".join(map(str, column.limit(4)[name].to_pyarrow().to_pylist()))

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
    if causes.get("unknown_item", 0) == rows:
        raise ValueError(
            f"{where} {columns.item!r}: none of {rows:,} rows has an item of the catalogue, "
            f"expected ids of items.item; correct {source.setting}.item or items.item"
        )


def _write_samples(con: "ibis.BaseBackend", staged: "ir.Table", *, path: Path) -> None:
    """Keep some rows of every cause, to look at."""
    import ibis

    bad = staged.filter(staged.cause.notnull()).select(
        "cause", "user_id", "item_id", "raw_time", "raw_label"
    )
    order = [bad.user_id, bad.item_id, bad.raw_time, bad.raw_label]
    rank = ibis.row_number().over(group_by=bad.cause, order_by=order)
    samples = bad.mutate(rank=rank).filter(lambda row: row["rank"] < SAMPLE_ROWS).drop("rank")
    path.parent.mkdir(parents=True, exist_ok=True)
    samples.order_by(["cause", "user_id", "item_id", "raw_time"]).to_parquet(path)
