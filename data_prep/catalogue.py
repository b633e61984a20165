"""Items and users as tables: rows numbered in order of id, features typed, content set beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.cleaning import Ledger, write_samples
from data_prep.columns import ItemColumns, UserColumns
from data_prep.engines import Engine, count_rows
from data_prep.misread import count_misread
from data_prep.parquet_files import ROW_GROUP_ROWS, write_parquet
from data_prep.privacy import Privacy
from data_prep.sources import MISREAD_SHARE, Source, open_source, refuse_misread_ids
from data_prep.text_lists import check_lists, with_lists, with_lists_schema

if TYPE_CHECKING:
    import ibis.expr.types as ir


@dataclass(frozen=True)
class Catalogue:
    """The items."""

    num_items: int
    source: Source
    rows: "ir.Table"
    """item_id, item_row."""
    table: "ir.Table"
    """item_row, item_id, arrival (ms or null), features; lists may still be text."""
    content: "ir.Table"
    """item_row, item_id, image, text_<field>, vector_<name>."""
    vector_widths: dict[str, int]


def read_catalogue(
    engine: Engine, columns: ItemColumns, *, privacy: Privacy, ledger: Ledger, samples: Path
) -> Catalogue:
    """Open the items and number them; `samples` is the file for some of those set aside."""
    import ibis

    source = open_source(engine, columns, setting="items", unique=columns.item)
    source = privacy.items(source, columns.item)
    ids = source.table.select(item_id=source.ids(columns.item, setting="item"))
    rows_in = count_rows(engine, ids)
    ids = ids.filter(ids.item_id.notnull())
    row = ibis.row_number().over(order_by=ids.item_id).cast("int32")
    rows = engine.keep("item_rows", ids.mutate(item_row=row))
    num_items = count_rows(engine, rows)
    if num_items == 0:
        raise ValueError(f"{source.path}: found no items, expected a catalogue; give one")
    if rows_in - num_items > MISREAD_SHARE * rows_in:
        refuse_misread_ids(engine, source, columns.item, setting="item", rows=rows_in)
    _set_aside(engine, source, columns, rows=rows_in, ledger=ledger, samples=samples)
    ledger.passed("items: with an id", rows_in=rows_in, rows_out=num_items)

    facts, content = typed_items(source, columns)
    count_misread(engine, source, columns.features, ledger=ledger)
    return Catalogue(
        num_items=num_items,
        source=source,
        rows=rows,
        table=rows.inner_join(facts, "item_id"),
        content=rows.inner_join(content, "item_id").relocate("item_row"),
        vector_widths={
            name: _vector_width(engine, source, column, name=name)
            for name, column in columns.vectors.items()
        },
    )


def typed_items(source: Source, columns: ItemColumns) -> tuple["ir.Table", "ir.Table"]:
    """What is known of the items, and their content, both with item_id; nothing is computed."""
    ids = source.ids(columns.item, setting="item")
    features = source.features(columns.features)
    check_lists(source, columns.features)
    facts = source.table.select(item_id=ids, arrival=_arrival(source, columns), **features)
    content = source.table.select(item_id=ids, **_content_columns(source, columns))
    return facts, content


def typed_users(source: Source, columns: UserColumns) -> "ir.Table":
    """user_id and the features; nothing is computed."""
    ids = source.ids(columns.user, setting="user")
    features = source.features(columns.features)
    check_lists(source, columns.features)
    return source.table.select(user_id=ids, **features)


def write_users(
    engine: Engine,
    columns: UserColumns | None,
    *,
    users: "ir.Table",
    privacy: Privacy,
    path: Path,
) -> None:
    """Write user_row, user_id and the features; unknown users have null features."""
    table = users.select("user_row", "user_id")
    source = None
    if columns is not None:
        source = open_source(engine, columns, setting="users", unique=columns.user)
        source = privacy.users(source, columns.user)
        ids = source.ids(columns.user, setting="user")
        if ids.type() != table.user_id.type():
            raise ValueError(
                f"{source.path}: column {columns.user!r} holds {ids.type()}, but the "
                f"interactions' user ids are {table.user_id.type()}; convert one of them"
            )
        rows = count_rows(engine, source.table)
        if count_rows(engine, source.table.filter(ids.isnull())) > MISREAD_SHARE * rows:
            refuse_misread_ids(engine, source, columns.user, setting="user", rows=rows)
        features = typed_users(source, columns)
        count_misread(engine, source, columns.features, ledger=privacy.ledger)
        joined = table.left_join(features, "user_id")
        table = joined.select("user_row", "user_id", *columns.features)
    ordered = table.order_by("user_row")
    schema = ordered.schema().to_pyarrow()
    tables = engine.stream(ordered, rows=ROW_GROUP_ROWS, schema=schema)
    kinds = columns.features if columns is not None else {}
    written = with_lists(tables, kinds, source=source)
    write_parquet(written, path, schema=with_lists_schema(schema, kinds))


def _content_columns(source: Source, columns: ItemColumns) -> dict[str, "ir.Value"]:
    content: dict[str, ir.Value] = {}
    for media in ("image", "frames", "sound"):
        if (name := getattr(columns, media)) is not None:
            content[media] = _media_column(source, name, setting=media)
    for name in columns.texts:
        content[f"text_{name}"] = _text_column(source, name)
    for name, column in columns.vectors.items():
        vector = source.column(column, setting="vectors")
        if not (vector.type().is_array() and vector.type().value_type.is_numeric()):
            raise ValueError(
                f"{source.path}: column {column!r} holds {vector.type()}, expected lists of "
                "numbers; correct items.vectors"
            )
        content[f"vector_{name}"] = vector.cast("array<float32>")
    return content


def _text_column(source: Source, name: str) -> "ir.Value":
    text = source.column(name, setting="texts")
    if text.type().is_nested() or text.type().is_binary():
        raise ValueError(
            f"{source.path}: column {name!r} holds {text.type()}, expected text; "
            "correct items.texts"
        )
    return text.cast("string")


def _media_column(source: Source, name: str, *, setting: str) -> "ir.Value":
    """A column of bytes, paths or URLs; `frames` are lists of these."""
    column = source.column(name, setting=setting)
    kind = column.type()
    wanted = "bytes, paths or URLs"
    if setting == "frames":
        wanted, kind = f"lists of {wanted}", kind.value_type if kind.is_array() else None
    if kind is None or not (kind.is_binary() or kind.is_string()):
        raise ValueError(
            f"{source.path}: column {name!r} holds {column.type()}, expected {wanted}; "
            f"correct items.{setting}"
        )
    return column


def _vector_width(engine: Engine, source: Source, column: str, *, name: str) -> int:
    """The most common length; vectors of another one are set aside by the content step."""
    import ibis

    lengths = source.table.select(width=source.table[column].length())
    common = engine.rows(
        lengths.filter(lengths.width > 0)
        .group_by("width")
        .aggregate(items=lambda row: row.count())
        .order_by([ibis.desc("items"), "width"])
        .limit(1)
    )
    if not common:
        raise ValueError(
            f"{source.path}: column {column!r} holds no vector, expected some for items.vectors."
            f"{name}; leave it out"
        )
    return int(common[0]["width"])


def _arrival(source: Source, columns: ItemColumns) -> "ir.Value":
    import ibis

    if columns.arrival is None:
        return ibis.null().cast("int64")
    unit = columns.arrival_unit
    return source.milliseconds(columns.arrival, setting="arrival", unit=unit)


def _set_aside(
    engine: Engine,
    source: Source,
    columns: ItemColumns,
    *,
    rows: int,
    ledger: Ledger,
    samples: Path,
) -> None:
    """Count what has no id and whose arrival is no time, and keep some to look at.

    An arrival that is no time counts as unknown; a column without any time is an error.
    """
    bad = _bad_items(source, columns)
    counts = bad.group_by("cause").aggregate(rows=lambda row: row.count()).order_by("cause")
    causes = {row["cause"]: int(row["rows"]) for row in engine.rows(counts)}
    if not causes:
        return
    if columns.arrival is not None and (count := causes.get("arrival_not_a_time", 0)):
        given = count_rows(engine, source.table.filter(source.table[columns.arrival].notnull()))
        if count > MISREAD_SHARE * given:
            wrong = bad.filter(bad.cause == "arrival_not_a_time").select("raw_arrival").distinct()
            examples = engine.rows(wrong.order_by("raw_arrival").limit(4))
            raise ValueError(
                f"{source.path}: column {columns.arrival!r}: {count:,} of {given:,} values (such "
                f"as {', '.join(str(row['raw_arrival']) for row in examples)}) are no times of "
                "1980 to 2100; correct items.arrival or items.arrival_unit"
            )
    shown = _bad_items(source.with_given(), columns)
    write_samples(engine, shown, order=shown.drop("cause").columns, path=samples)
    ledger.set_aside({f"items/{cause}": count for cause, count in causes.items()}, rows=rows)


def _bad_items(source: Source, columns: ItemColumns) -> "ir.Table":
    """The items with a cause, and what to know them by."""
    import ibis

    shown: dict[str, ir.Value] = {"item_id": source.as_given(columns.item).cast("string")}
    cases = [(source.ids(columns.item, setting="item").isnull(), "null_id")]
    if columns.arrival is not None:
        bad = source.column(columns.arrival, setting="arrival").notnull()
        bad &= _arrival(source, columns).isnull()
        cases.append((bad, "arrival_not_a_time"))
        shown["raw_arrival"] = source.as_given(columns.arrival)
    for name in columns.texts:
        shown[f"text_{name}"] = _text_column(source, name)
    cause = ibis.cases(*cases, else_=ibis.null()).cast("string")
    table = source.table.select(cause=cause, **shown)
    return table.filter(table.cause.notnull())
