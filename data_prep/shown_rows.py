"""What the sorted impressions say as they stream by: rows that repeat another, the first place.

Letters: n rows of a table and the one before them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.settings import ImpressionDuplicates

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

POSITION = "position"


@dataclass
class ShownRows:
    """Counted while they are written."""

    duplicates: ImpressionDuplicates
    usable: int = 0
    repeated: int = 0
    """Rows that equal another in every column, all but the first of each."""
    first_place: int | None = None
    """The least position; None without any."""

    def count(self, tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
        """The same rows, without the repeated ones where they are to go.

        Args:
            tables: In order of all columns, so that equal rows lie side by side.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        last: pa.Table | None = None
        for table in tables:
            if table.num_rows == 0:
                yield table
                continue
            both = table if last is None else pa.concat_tables([last, table])
            repeats_n = _repeats(both.combine_chunks())
            if last is None:
                repeats_n = np.concatenate([[False], repeats_n])
            last = table.slice(table.num_rows - 1)
            self.usable += table.num_rows
            self.repeated += int(np.count_nonzero(repeats_n))
            if POSITION in table.column_names:
                place = pc.min(table[POSITION]).as_py()
                self.first_place = (
                    place if self.first_place is None else min(self.first_place, place)
                )
            if self.duplicates == "keep_exact_once" and repeats_n.any():
                table = table.filter(pa.array(~repeats_n))
            yield table


def _repeats(table: "pa.Table") -> NDArray[np.bool_]:
    """[n - 1] Whether each row but the first equals the one before it; missing equals missing."""
    import pyarrow as pa

    equal_n = np.ones(table.num_rows - 1, bool)
    # Lists, which Arrow does not compare, last: few rows are left to look at then.
    for column in sorted(table.columns, key=lambda one: pa.types.is_nested(one.type)):
        if not equal_n.any():
            break
        if pa.types.is_nested(column.type):
            equal_n[equal_n] = [
                column[row].as_py() == column[row + 1].as_py() for row in np.flatnonzero(equal_n)
            ]
        else:
            equal_n &= _equals_next(column)
    return equal_n


def _equals_next(column: "pa.ChunkedArray") -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    before, after = column.slice(0, len(column) - 1), column.slice(1)
    equal = pc.fill_null(pc.equal(before, after), False)
    equal = pc.or_(equal, pc.and_(before.is_null(), after.is_null()))
    if pa.types.is_floating(column.type):
        nan = pc.and_(pc.is_nan(before), pc.is_nan(after))
        equal = pc.or_(equal, pc.fill_null(nan, False))
    found: NDArray[np.bool_] = equal.to_numpy()
    return found
