"""Lists that a text column holds as JSON, which is how CSV and TSV can have them.

They are read here as rows stream out of the engine, since engines differ on what they take for JSON
and on how they spell numbers.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from data_prep.records import FeatureType
from data_prep.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa

LOOKED_AHEAD = 1000
"""Rows looked at before the engine begins, as most mistakes are in every row."""


def check_lists(source: Source, features: dict[str, FeatureType]) -> None:
    """Refuse a text column whose first rows are no lists.

    Raises:
        ValueError: it names the line.
    """
    for name, kind in features.items():
        if kind == "multi" and source.table[name].type().is_string():
            _refuse(source, name, rows=LOOKED_AHEAD)


def with_lists(
    tables: Iterable["pa.Table"], features: dict[str, FeatureType], *, source: Source | None
) -> Iterator["pa.Table"]:
    """Tables whose multi-valued columns of text are lists of text.

    Raises:
        ValueError: a cell holds something else; it names the line.
    """
    for table in tables:
        for place, name in _text_columns(table.schema, features):
            assert source is not None
            try:
                lists = _parsed(table[name])
            except ValueError:
                _refuse(source, name, rows=None)
                raise
            table = table.set_column(place, name, lists)
        yield table


def with_lists_schema(schema: "pa.Schema", features: dict[str, FeatureType]) -> "pa.Schema":
    """The schema of `with_lists`."""
    import pyarrow as pa

    for place, name in _text_columns(schema, features):
        schema = schema.set(place, pa.field(name, pa.list_(pa.string())))
    return schema


def _text_columns(
    schema: "pa.Schema", features: dict[str, FeatureType]
) -> Iterator[tuple[int, str]]:
    import pyarrow as pa

    for name, kind in features.items():
        place = schema.get_field_index(name)
        if kind == "multi" and pa.types.is_string(schema.field(place).type):
            yield place, name


def _parsed(texts: "pa.ChunkedArray") -> "pa.Array":
    """A list a row; every distinct text is read once."""
    import pyarrow as pa

    encoded = texts.combine_chunks().dictionary_encode()
    lists = pa.array(map(parse_list, encoded.dictionary.to_pylist()), pa.list_(pa.string()))
    return lists.take(encoded.indices)


def parse_list(text: str) -> list[str | None] | None:
    """The members of a JSON list, spelled as text; None for a blank cell.

    Raises:
        ValueError: it is something else.
    """
    if not text.strip():
        return None
    found = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(found, list) or any(isinstance(one, (list, dict)) for one in found):
        raise ValueError(f"found {text!r}, expected a JSON list of texts or numbers")
    # JSON spells truth as engines do, and numbers as Python does.
    return [one if one is None or isinstance(one, str) else json.dumps(one) for one in found]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, which is no JSON")


def _is_no_list(value: object) -> bool:
    if value is None or isinstance(value, list):
        return False
    try:
        parse_list(str(value))
    except (ValueError, RecursionError):
        return True
    return False


def _refuse(source: Source, name: str, *, rows: int | None) -> None:
    if (cell := source.first_cell(name, is_meant=_is_no_list, rows=rows)) is not None:
        raise ValueError(
            f"{source.path}: column {name!r}: {cell}, expected a JSON list such as "
            f'["red", "new"] for {source.setting}.features; write lists so, or choose categorical'
        )
