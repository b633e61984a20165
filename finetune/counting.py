"""Values and numbers counted in pieces, so that a vocabulary needs no table in memory.

Shapes: n rows of a piece.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)

_WAITING_ROWS = 1 << 20  # rows of partial counts that wait to be added to the total


@dataclass
class ValueCounts:
    """How many training impressions have each value of a column, or of a column of lists."""

    is_list: bool = False
    _parts: list[pa.Table] = field(default_factory=list)
    _waiting: int = 0

    def add(self, column: pa.Array | pa.ChunkedArray, weight_n: NDArray[np.integer]) -> None:
        """Count a piece; `weight_n` are the impressions that each of its rows stands for."""
        array = one_array(column)
        if self.is_list:
            sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
            array, weight_n = array.flatten(), np.repeat(weight_n, sizes)
        array = integers_or_strings(array)
        known = ~null_mask(array)
        weights = weight_n[known].astype(np.int64)
        part = pa.table({"value": array.filter(pa.array(known)), "weight": weights})
        self._parts.append(_added_up(part))
        self._waiting += self._parts[-1].num_rows
        if self._waiting > max(_WAITING_ROWS, self._parts[0].num_rows):
            self.totals()

    def totals(self) -> pa.Table:
        """Columns `value`, ascending, and `weight`."""
        if len(self._parts) != 1:
            self._parts = [_added_up(pa.concat_tables(self._parts))]
        self._waiting = 0
        return self._parts[0].sort_by("value")


def _added_up(part: pa.Table) -> pa.Table:
    totals = part.group_by("value").aggregate([("weight", "sum")])
    return totals.rename_columns({"weight_sum": "weight"}).select(["value", "weight"])


@dataclass
class Moments:
    """Mean and spread of a column of numbers over training impressions."""

    is_log: bool = False
    """Whether numbers are taken as their signed logarithm."""
    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, column: pa.Array | pa.ChunkedArray, weight_n: NDArray[np.integer]) -> None:
        """Add a piece (Chan et al. 1983, eq. 2.1: pairwise, which cancels no digits)."""
        x_n = numbers(column, is_log=self.is_log)
        known = ~np.isnan(x_n) & (weight_n > 0)
        if not known.any():
            return
        x_n, weight_n = x_n[known], weight_n[known]
        weight = float(weight_n.sum())
        mean = float(np.average(x_n, weights=weight_n))
        square = float(np.sum(weight_n * (x_n - mean) ** 2))
        total, apart = self.weight + weight, mean - self.mean
        self.square += square + apart**2 * self.weight * weight / total
        self.mean += apart * weight / total
        self.weight = total

    @property
    def std(self) -> float:
        """Spread; 1 where every number is the same or there is none."""
        std = (self.square / self.weight) ** 0.5 if self.weight else 0.0
        return std if std > 0 else 1.0


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def integers_or_strings(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array of integers or strings, the two types a JSON vocabulary keeps exactly."""
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, None)  # not a value called "nan"
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        return array.cast(pa.int64())
    return array.cast(pa.string())


def null_mask(array: pa.Array) -> NDArray[np.bool_]:
    """True where there is no value."""
    return np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False), dtype=bool)


def numbers(column: pa.Array | pa.ChunkedArray, *, is_log: bool = False) -> Floats:
    """Numbers with NaN for whatever is missing or infinite; sign(x) log(1 + |x|) where asked."""
    x = one_array(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    x = np.where(np.isfinite(x), x, np.nan)
    return np.sign(x) * np.log1p(np.abs(x)) if is_log else x
