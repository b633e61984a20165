"""Values to integers, learnt from the training impressions and saved with the run.

Every categorical or multi field has its block of rows in one concatenated embedding table:
`offset` is the missing value, `offset + 1` the unknown one, and the known values follow.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.records import replace_file
from finetune.counting import (
    Moments,
    ValueCounts,
    integers_or_strings,
    null_mask,
    numbers,
    one_array,
)
from finetune.hashing import hash_rows
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
    hash_buckets: int | None = None
    """Rows that values are hashed into; null: `values` is the vocabulary."""
    shares: str | None = None
    """The field whose rows these are: a sequence of item ids reads the items' own."""

    @property
    def size(self) -> int:
        """Rows of the embedding table that belong to this field."""
        return NUM_RESERVED + (self.hash_buckets or len(self.values))

    @property
    def unknown(self) -> int:
        """Row of a value that training did not see often enough."""
        return self.offset + UNKNOWN

    @cached_property
    def _value_set(self) -> pa.Array:
        return pa.array(self.values)

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """Table rows of a column's values."""
        column = integers_or_strings(column)
        if self.hash_buckets:
            index = hash_rows(column, buckets=self.hash_buckets)
        elif not self.values:
            index = np.full(len(column), -1, dtype=np.int64)
        else:
            found = pc.index_in(column.cast(self._value_set.type), value_set=self._value_set)
            index = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        local = np.where(index < 0, UNKNOWN, index + NUM_RESERVED)
        local[null_mask(column)] = MISSING
        return np.asarray(self.offset + local, dtype=np.int32)

    def encode_lists(self, column: pa.Array | pa.ChunkedArray, *, length: int) -> NDArray[np.int32]:
        """Table rows of the first `length` values of each list, [rows, length] with -1 padding.

        A missing or empty list holds the missing value once.
        """
        array = one_array(column)
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
    is_log: bool = False
    """Whether mean and spread are those of sign(x) log(1 + |x|)."""

    def encode(self, column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
        """Standardised values; NaN where missing, infinite or not a number."""
        x = numbers(column, is_log=self.is_log)
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
        return sum(field.size for field in self.categorical if field.shares is None)

    def named(self, name: str) -> CategoricalField:
        """The id field of this name."""
        return next(field for field in self.categorical if field.name == name)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"
        replace_file(path, text.encode())

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


Counts = dict[tuple[Owner, str], ValueCounts | Moments]
"""What is counted of each owner's features, in the order of the matrices."""


def start_counts(features: dict[Owner, dict[str, str]], *, log_features: Sequence[str]) -> Counts:
    """Nothing counted yet.

    Args:
        features: Name and type (categorical, multi, numeric) of each owner's features.
        log_features: Numeric ones whose logarithm is standardised.
    """
    counts: Counts = {}
    for owner, types in features.items():
        named: dict[str, str] = {ID_FIELDS[owner]: "categorical"} if owner in ID_FIELDS else {}
        for name, kind in (named | types).items():
            if kind == "numeric":
                counts[owner, name] = Moments(is_log=name in log_features)
            else:
                counts[owner, name] = ValueCounts(is_list=kind == "multi")
    return counts


def vocabulary_of(
    counts: Counts,
    *,
    min_count: int,
    hash_buckets: Mapping[str, int],
    hash_above: int | None,
    item_sequences: Sequence[str],
    older: Vocabulary | None = None,
) -> Vocabulary:
    """Give every field its rows of the table; the arguments are as in `InputConfig`.

    A field of `older`, which the vocabulary is to grow from, is hashed or not as it was there,
    however many values there are by now.
    """
    before = {} if older is None else {(one.owner, one.name): one for one in older.categorical}
    categorical: list[CategoricalField] = []
    numeric: list[NumericField] = []
    offset = 0
    for (owner, name), counted in counts.items():
        if isinstance(counted, Moments):
            if counted.weight == 0:
                logger.warning("%s feature %s: no training impression has a value", owner, name)
            numeric.append(
                NumericField(
                    name=name,
                    owner=owner,
                    mean=counted.mean,
                    std=counted.std,
                    is_log=counted.is_log,
                )
            )
            continue
        buckets, values = hash_buckets.get(name), list[Any]()
        known = before.get((owner, name))
        if known is not None and buckets is None and name not in item_sequences:
            buckets = known.hash_buckets
        if buckets is None and name not in item_sequences:
            totals = counted.totals()
            kept = totals.filter(pc.greater_equal(totals["weight"], min_count))["value"]
            if name not in ID_FIELDS.values():
                warn_of_values(
                    totals["weight"].to_numpy(),
                    owner=owner, name=name, num_values=len(kept), min_count=min_count,
                )  # fmt: skip
            if known is None and hash_above is not None and len(kept) > hash_above:
                buckets = hash_above
                logger.info("%s: %d values, hashed into %d rows", name, len(kept), buckets)
            else:
                values = kept.to_pylist()
        categorical.append(
            CategoricalField(
                name=name,
                owner=owner,
                kind="multi" if counted.is_list else "categorical",
                offset=offset,
                values=values,
                hash_buckets=buckets,
            )
        )
        offset += categorical[-1].size if name not in item_sequences else 0
    return Vocabulary(categorical=_shared(categorical, item_sequences), numeric=numeric)


def _shared(fields: list[CategoricalField], names: Sequence[str]) -> list[CategoricalField]:
    """Let sequences of items read the items' rows."""
    if not names:
        return fields
    item = next(field for field in fields if field.name == ID_FIELDS["item"])

    def of_items(field: CategoricalField) -> CategoricalField:
        return dataclasses.replace(
            field,
            shares=item.name,
            offset=item.offset,
            values=item.values,
            hash_buckets=item.hash_buckets,
        )

    return [of_items(field) if field.name in names else field for field in fields]


def build_vocabulary(
    features: dict[Owner, dict[str, str]],
    column: Callable[[Owner, str], pa.ChunkedArray],
    *,
    train_rows: dict[Owner, NDArray[np.integer]],
    min_count: int,
) -> Vocabulary:
    """Learn values, means and spreads from the training impressions of tables in memory.

    Args:
        features: Name and type (categorical, multi, numeric) of each owner's features.
        column: The column of an owner's feature, a value a row of its table.
        train_rows: Row of each owner's table for every training impression.
        min_count: Training impressions below which a value counts as unknown.
    """
    counts = start_counts(features, log_features=())
    for (owner, name), counted in counts.items():
        count_rows(counted, column(owner, name), np.bincount(train_rows[owner], minlength=1))
    return vocabulary_of(
        counts, min_count=min_count, hash_buckets={}, hash_above=None, item_sequences=()
    )


def count_rows(
    counted: ValueCounts | Moments, column: pa.ChunkedArray, weights: NDArray[np.integer]
) -> None:
    """Count a table's column by how many training impressions are of each row."""
    rows = np.flatnonzero(weights)
    counted.add(column.take(pa.array(rows)), weights[rows])
