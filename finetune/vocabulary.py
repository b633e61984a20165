"""Values to integers, learnt from the training impressions and saved with the run.

Every categorical or multi field has its block of rows in one concatenated embedding table:
`offset` is the missing value, `offset + 1` the unknown one, and the known values follow.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from finetune.input_checks import warn_of_values

logger = logging.getLogger(__name__)

VOCABULARY_VERSION = 1
MISSING, UNKNOWN, NUM_RESERVED = 0, 1, 2

Owner = Literal["user", "item", "context"]
ID_FIELDS: dict[Owner, str] = {"user": "user_id", "item": "item_id"}


@dataclass(frozen=True, kw_only=True)
class CategoricalField:
    """A column of values, or of lists of values."""

    name: str
    owner: Owner
    kind: Literal["categorical", "multi"]
    offset: int
    values: list[Any]

    @property
    def size(self) -> int:
        """Rows of the embedding table that belong to this field."""
        return NUM_RESERVED + len(self.values)

    @property
    def unknown(self) -> int:
        """Row of a value that training did not see often enough."""
        return self.offset + UNKNOWN

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """Table rows of a column's values."""
        column = _integers_or_strings(column)
        if not self.values:
            index = np.full(len(column), -1, dtype=np.int64)
        else:
            value_set = pa.array(self.values)
            found = pc.index_in(column.cast(value_set.type), value_set=value_set)
            index = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        local = np.where(index < 0, UNKNOWN, index + NUM_RESERVED)
        local[_null_mask(column)] = MISSING
        return np.asarray(self.offset + local, dtype=np.int32)

    def encode_lists(self, column: pa.ChunkedArray, *, length: int) -> NDArray[np.int32]:
        """Table rows of the first `length` values of each list, [rows, length] with -1 padding.

        A missing or empty list holds the missing value once.
        """
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        flat = self.encode(array.flatten())
        starts = np.cumsum(sizes) - sizes
        positions = starts[:, None] + np.arange(length)
        inside = np.arange(length) < sizes[:, None]
        padded = np.full(inside.shape, -1, dtype=np.int32)
        padded[inside] = flat[positions[inside]]
        padded[sizes == 0, 0] = self.offset + MISSING
        return padded


@dataclass(frozen=True, kw_only=True)
class NumericField:
    """A column of numbers, standardised by the mean and spread over training impressions."""

    name: str
    owner: Owner
    mean: float
    std: float

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
        """Standardised values; NaN where missing, infinite or not a number."""
        x = _as_float64(column)
        return np.asarray((x - self.mean) / self.std, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Every field of a run, in the order of the matrices."""

    categorical: list[CategoricalField]
    numeric: list[NumericField]
    version: int = VOCABULARY_VERSION

    @property
    def num_rows(self) -> int:
        """Rows of the concatenated embedding table."""
        return sum(field.size for field in self.categorical)

    def named(self, name: str) -> CategoricalField:
        """The id field of this name."""
        return next(field for field in self.categorical if field.name == name)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Read what `save` wrote."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: found no vocabulary, so this is no finished run; "
                "re-run python -m finetune fit"
            )
        raw = json.loads(path.read_text())
        if raw.get("version") != VOCABULARY_VERSION:
            raise ValueError(
                f"{path}: found version {raw.get('version')}, this code reads "
                f"{VOCABULARY_VERSION}; re-run python -m finetune fit"
            )
        return Vocabulary(
            categorical=[CategoricalField(**field) for field in raw["categorical"]],
            numeric=[NumericField(**field) for field in raw["numeric"]],
        )


def build_vocabulary(
    features: dict[Owner, dict[str, str]],
    column: Callable[[Owner, str], pa.ChunkedArray],
    *,
    train_rows: dict[Owner, NDArray[np.integer]],
    min_count: int,
) -> Vocabulary:
    """Learn values, means and spreads from the training impressions alone.

    Args:
        features: Name and type (categorical, multi, numeric) of each owner's features.
        column: The column of an owner's feature, a value a row of its table.
        train_rows: Row of each owner's table for every training impression.
        min_count: Training impressions below which a value counts as unknown.
    """
    categorical: list[CategoricalField] = []
    numeric: list[NumericField] = []
    offset = 0
    for owner, types in features.items():
        named: dict[str, str] = {ID_FIELDS[owner]: "categorical"} if owner in ID_FIELDS else {}
        counts = np.bincount(train_rows[owner], minlength=1)
        for name, kind in (named | types).items():
            values = column(owner, name)
            rows = np.flatnonzero(counts)
            weights = counts[rows]
            taken = values.take(pa.array(rows))
            if kind == "numeric":
                numeric.append(_fit_numeric(taken, weights, name=name, owner=owner))
                continue
            totals = _value_totals(taken, weights, is_list=kind == "multi")
            kept = totals.filter(pc.greater_equal(totals["weight_sum"], min_count))
            known = list(kept["value"].to_pylist())
            if name not in ID_FIELDS.values():
                warn_of_values(
                    totals["weight_sum"].to_numpy(),
                    owner=owner, name=name, num_values=len(known), min_count=min_count,
                )  # fmt: skip
            categorical.append(
                CategoricalField(
                    name=name,
                    owner=owner,
                    kind="multi" if kind == "multi" else "categorical",
                    offset=offset,
                    values=known,
                )
            )
            offset += categorical[-1].size
    return Vocabulary(categorical=categorical, numeric=numeric)


def _fit_numeric(
    column: pa.ChunkedArray, weights: NDArray[np.integer], *, name: str, owner: Owner
) -> NumericField:
    x = _as_float64(column)
    known = ~np.isnan(x)
    if not known.any():
        logger.warning("%s feature %s: no training impression has a value", owner, name)
        return NumericField(name=name, owner=owner, mean=0.0, std=1.0)
    mean = float(np.average(x[known], weights=weights[known]))
    std = float(np.sqrt(np.average((x[known] - mean) ** 2, weights=weights[known])))
    return NumericField(name=name, owner=owner, mean=mean, std=std if std > 0 else 1.0)


def _value_totals(
    column: pa.ChunkedArray, weights: NDArray[np.integer], *, is_list: bool
) -> pa.Table:
    """Distinct values in order, and the training impressions of each as weight_sum."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_list:
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        array, weights = array.flatten(), np.repeat(weights, sizes)
    array = _integers_or_strings(array)
    known = ~_null_mask(array)
    table = pa.table({"value": array.filter(pa.array(known)), "weight": weights[known]})
    return table.group_by("value").aggregate([("weight", "sum")]).sort_by("value")


def _integers_or_strings(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array of integers or strings, the two types a JSON vocabulary keeps exactly."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, None)  # not a value called "nan"
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        return array.cast(pa.int64())
    return array.cast(pa.string())


def _null_mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False), dtype=bool)


def _as_float64(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers with NaN for whatever is missing or infinite."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    x = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(x), x, np.nan)
