"""Item ids to item rows by an array, where the ids are compact integers.

The rows are numbered in order of id, so that a log sorted by id is sorted by row, and the engine
need not join: for a log that is much longer than the catalogue, that is a third of its work.

Letters: n events of a table, R ids from the least to the greatest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.engines import Engine
from data_prep.parquet_files import ROW_GROUP_ROWS
from data_prep.sorted_log import ONLY_SHOWN

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

MAX_RANGE = 1 << 24
"""Most ids from the least to the greatest: 64 MB of rows."""
UNKNOWN = -2
ONLY_SHOWN_ID = int(np.iinfo(np.int64).min)
"""In the place of an item's id in a row that is no event."""


@dataclass(frozen=True)
class ItemLookup:
    """The row of every id."""

    least: int
    rows_R: NDArray[np.int32]
    """`UNKNOWN` where the catalogue has no such id; one place more, for what lies outside."""

    @staticmethod
    def of(engine: Engine, catalogue: "ir.Table") -> "ItemLookup | None":
        """Of item_id and item_row; None where the ids are text, or too far apart."""
        ids = catalogue.item_id
        if not ids.type().is_integer():
            return None
        (ends,) = engine.rows(catalogue.aggregate(least=ids.min(), greatest=ids.max()))
        least, size = int(ends["least"]), int(ends["greatest"]) - int(ends["least"]) + 1
        if size > MAX_RANGE or least == ONLY_SHOWN_ID or int(ends["greatest"]) >= 1 << 63:
            return None
        rows_R = np.full(size + 1, UNKNOWN, np.int32)
        for table in engine.stream(catalogue, rows=ROW_GROUP_ROWS):
            places = to_numpy(table["item_id"]).astype(np.int64) - least
            rows_R[places] = to_numpy(table["item_row"])
        return ItemLookup(least, rows_R)

    def rows_of(self, ids_n: NDArray[np.int64]) -> NDArray[np.int32]:
        """[n] rows; `UNKNOWN` where there is none, `ONLY_SHOWN` for `ONLY_SHOWN_ID`."""
        # As unsigned numbers, ids below the least are far above the greatest.
        places_n = (ids_n - self.least).view(np.uint64)
        rows_n = self.rows_R[np.minimum(places_n, np.uint64(len(self.rows_R) - 1))]
        if (rows_n == UNKNOWN).any():
            rows_n[ids_n == ONLY_SHOWN_ID] = ONLY_SHOWN
        return rows_n

    def replace_ids(self, tables: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
        """The same tables with item_row for item_id, without the rows of unknown items."""
        for table in tables:
            rows_n = self.rows_of(to_numpy(table["item_id"]))
            place = table.schema.get_field_index("item_id")
            table = table.set_column(place, "item_row", to_arrow(rows_n))
            known_n = rows_n != UNKNOWN
            if not known_n.all():
                table = table.filter(to_arrow(known_n))
            if table.num_rows:
                yield table
