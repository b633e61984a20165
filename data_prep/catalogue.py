"""Items and users as tables: rows numbered in order of id, features typed, content set beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.cleaning import Ledger
from data_prep.columns import ItemColumns, UserColumns
from data_prep.engines import Engine, count_rows
from data_prep.parquet_files import ROW_GROUP_ROWS, write_parquet
from data_prep.sources import Source, open_source

if TYPE_CHECKING:
    import ibis.expr.types as ir


@dataclass(frozen=True)
class Catalogue:
    """The items."""

    num_items: int
    rows: "ir.Table"
    """item_id, item_row."""
    table: "ir.Table"
    """item_row, item_id, arrival (ms or null), features."""
    content: "ir.Table"
    """item_row, item_id, image, text_<field>, vector_<name>."""
    vector_widths: dict[str, int]


def read_catalogue(engine: Engine, columns: ItemColumns, *, ledger: Ledger) -> Catalogue:
    """Open the items and number them."""
    import ibis

    source = open_source(engine, columns.path, setting="items", unique=columns.item)
    ids = source.table.select(item_id=source.ids(columns.item, setting="item"))
    rows_in = count_rows(engine, ids)
    ids = ids.filter(ids.item_id.notnull())
    row = ibis.row_number().over(order_by=ids.item_id).cast("int32")
    rows = engine.keep("item_rows", ids.mutate(item_row=row))
    num_items = count_rows(engine, rows)
    if num_items == 0:
        raise ValueError(f"{source.path}: found no items, expected a catalogue; give one")
    if num_items < rows_in:
        ledger.set_aside({"items/null_id": rows_in - num_items})
    ledger.passed("items: with an id", rows_in=rows_in, rows_out=num_items)

    arrival: ir.Value = ibis.null().cast("int64")
    if columns.arrival is not None:
        unit = columns.arrival_unit
        arrival = source.milliseconds(columns.arrival, setting="arrival", unit=unit)
        _count_bad_arrivals(engine, source, columns.arrival, arrival=arrival, ledger=ledger)
    facts = source.table.select(
        item_id=source.ids(columns.item, setting="item"),
        arrival=arrival,
        **source.features(columns.features),
    )
    content = source.table.select(
        item_id=source.ids(columns.item, setting="item"), **_content_columns(source, columns)
    )
    return Catalogue(
        num_items=num_items,
        rows=rows,
        table=rows.inner_join(facts, "item_id"),
        content=rows.inner_join(content, "item_id").relocate("item_row"),
        vector_widths={
            name: _vector_width(engine, source, column, name=name)
            for name, column in columns.vectors.items()
        },
    )


def write_users(
    engine: Engine, columns: UserColumns | None, *, users: "ir.Table", path: Path
) -> None:
    """Write user_row, user_id and the features; unknown users have null features."""
    table = users.select("user_row", "user_id")
    if columns is not None:
        source = open_source(engine, columns.path, setting="users", unique=columns.user)
        ids = source.ids(columns.user, setting="user")
        if ids.type() != table.user_id.type():
            raise ValueError(
                f"{source.path}: column {columns.user!r} holds {ids.type()}, but the "
                f"interactions' user ids are {table.user_id.type()}; convert one of them"
            )
        features = source.table.select(user_id=ids, **source.features(columns.features))
        joined = table.left_join(features, "user_id")
        table = joined.select("user_row", "user_id", *columns.features)
    ordered = table.order_by("user_row")
    schema = ordered.schema().to_pyarrow()
    write_parquet(engine.stream(ordered, rows=ROW_GROUP_ROWS, schema=schema), path, schema=schema)


def _content_columns(source: Source, columns: ItemColumns) -> dict[str, "ir.Value"]:
    content: dict[str, ir.Value] = {}
    for media in ("image", "frames", "sound"):
        if (name := getattr(columns, media)) is not None:
            content[media] = _media_column(source, name, setting=media)
    for name in columns.texts:
        text = source.column(name, setting="texts")
        if text.type().is_nested() or text.type().is_binary():
            raise ValueError(
                f"{source.path}: column {name!r} holds {text.type()}, expected text; "
                "correct items.texts"
            )
        content[f"text_{name}"] = text.cast("string")
    for name, column in columns.vectors.items():
        vector = source.column(column, setting="vectors")
        if not (vector.type().is_array() and vector.type().value_type.is_numeric()):
            raise ValueError(
                f"{source.path}: column {column!r} holds {vector.type()}, expected lists of "
                "numbers; correct items.vectors"
            )
        content[f"vector_{name}"] = vector.cast("array<float32>")
    return content


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


def _count_bad_arrivals(
    engine: Engine, source: Source, column: str, *, arrival: "ir.Column", ledger: Ledger
) -> None:
    """Arrivals that are no times count as unknown; a column without any time is an error."""
    times = source.table.select(raw=source.table[column].cast("string"), time=arrival)
    given = count_rows(engine, times.filter(times.raw.notnull()))
    bad = times.filter(times.raw.notnull() & times.time.isnull())
    if count := count_rows(engine, bad):
        if count > given / 2:
            examples = engine.rows(bad.select("raw").distinct().order_by("raw").limit(4))
            raise ValueError(
                f"{source.path}: column {column!r}: {count:,} of {given:,} values (such as "
                f"{', '.join(row['raw'] for row in examples)}) are no times of 1980 to 2100; "
                "correct items.arrival or items.arrival_unit"
            )
        ledger.set_aside({"items/arrival_not_a_time": count})
