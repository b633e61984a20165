"""Cells of a text format that were to be numbers and are none: missing, and counted."""

import logging
from typing import TYPE_CHECKING

from data_prep.cleaning import Ledger
from data_prep.engines import Engine
from data_prep.raw_rows import is_no_number
from data_prep.records import FeatureType
from data_prep.sources import GIVEN, MISREAD_SHARE, Source

if TYPE_CHECKING:
    import ibis.expr.types as ir

logger = logging.getLogger(__name__)


def count_misread(
    engine: Engine, source: Source, features: dict[str, FeatureType], *, ledger: Ledger
) -> None:
    """Count the cells of numeric features that hold something else, further down than was sniffed.

    Raises:
        ValueError: they are most of a column; it names the first.
    """
    table = source.given
    names = [
        name
        for name, kind in features.items()
        if kind == "numeric" and GIVEN + name in table.columns
    ]
    if not names:
        return
    counts: dict[str, ir.Value] = {"rows": table.count()}
    for name in names:
        text = table[GIVEN + name].strip()
        is_given = text.notnull() & (text != "")
        counts[f"given {name}"] = table.count(where=is_given)
        counts[f"misread {name}"] = table.count(where=is_given & table[name].isnull())
    (found,) = engine.rows(table.aggregate(**counts))
    for name in names:
        misread, given = found[f"misread {name}"], found[f"given {name}"]
        if not misread:
            continue
        cell = source.first_cell(name, is_meant=is_no_number)
        if misread > MISREAD_SHARE * given:
            raise ValueError(
                f"{source.path}: column {name!r}: {misread:,} of {given:,} values (the first: "
                f"{cell}) are no numbers; correct {source.setting}.features, or choose categorical"
            )
        logger.warning("%s: column %r: %s, expected a number", source.path, name, cell)
        ledger.set_aside({f"{source.setting}/{name}_not_a_number": misread}, rows=found["rows"])
