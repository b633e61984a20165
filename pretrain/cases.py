"""The tables of an evaluation, by item id, as matrices over one catalogue.

Shapes: B cases, N catalogue items, L events in the longest history, T targets in the longest case,
U users of the training table, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.metrics import PADDING

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Cases:
    """Questions: what follows these histories?"""

    users_B: Tensor
    """Whose question it is; values are averaged within a user first."""

    history_BL: Tensor
    """Catalogue rows in the order of the table, -1 after the last."""

    targets_BT: Tensor
    """Catalogue rows, -1 after the last."""

    history_BN: sp.csr_matrix
    """The histories as a matrix of ones."""

    masked_BM: Tensor
    """Catalogue rows that are never proposed: the history, or what the table names instead (see
    also `case_masks.py`)."""

    times_BL: Tensor
    """Unix milliseconds of the events, 0 where the table gives none and where padded."""

    at_times_B: Tensor
    """Unix milliseconds of the moment asked about, 1 where the table gives none."""

    @property
    def has_times(self) -> bool:
        """Whether the table says when its questions were asked."""
        return bool((self.at_times_B > 1).any())

    def latest(self, count: int) -> Cases:
        """The same questions, asked by the last `count` events of each history."""
        late_BL = latest_events(self.history_BL, count)
        case, place = late_BL.nonzero(as_tuple=True)
        rows = self.history_BL[case, place].numpy()
        history_BN = sp.csr_matrix(
            (np.ones(len(rows), np.float32), (case.numpy(), rows)), shape=self.history_BN.shape
        )
        history_BL = self.history_BL.masked_fill(~late_BL, PADDING)
        return replace(self, history_BL=history_BL, history_BN=history_BN)

    def take(self, rows: Rows) -> Cases:
        """These cases, in this order."""
        chosen = torch.from_numpy(rows)
        return Cases(
            users_B=self.users_B[chosen],
            history_BL=self.history_BL[chosen],
            targets_BT=self.targets_BT[chosen],
            history_BN=self.history_BN[rows],
            masked_BM=self.masked_BM[chosen],
            times_BL=self.times_BL[chosen],
            at_times_B=self.at_times_B[chosen],
        )


def latest_events(history_BL: Tensor, count: int) -> Tensor:
    """Which events are among the last `count` of their history; bool [B, L]."""
    seen_BL = history_BL != PADDING
    return seen_BL & (seen_BL.sum(1, keepdim=True) - seen_BL.cumsum(1) < count)


def marked(rows: Rows, *, num_items: int) -> Tensor:
    """Which catalogue items these rows are; bool [N]."""
    marked_N = torch.zeros(num_items, dtype=torch.bool)
    marked_N[torch.from_numpy(rows)] = True
    return marked_N


def read_catalogue(
    vectors: list[Path], *, columns: list[str], tables: list[Path]
) -> tuple[pa.Array, dict[str, Floats]]:
    """Item ids in ascending order, and their vectors [N, D] by column.

    The items are those of `vectors`, which must agree; without vectors, those of `tables`.

    Raises:
        ValueError: a column that none or several of the files have, or files of different items.
    """
    if not vectors:
        if columns:
            raise ValueError(f"vectors: found none, expected files with the columns {columns}")
        chunks = [chunk for path in tables for chunk in read(path, "item_id")["item_id"].chunks]
        return _sorted(pc.unique(pa.chunked_array(chunks))), {}
    names = {path: columns_of(path) for path in vectors}
    if unclear := [c for c in columns if sum(c in found for found in names.values()) != 1]:
        raise ValueError(
            f"vectors: found the columns {unclear} in none or in several of "
            f"{[str(path) for path in vectors]}, expected each in one of them"
        )
    catalogue = _sorted(read(vectors[0], "item_id")["item_id"].combine_chunks())
    kept: dict[str, Floats] = {}
    for path in vectors:
        table = read(path, "item_id", *(name for name in columns if name in names[path]))
        place = rows_of(table, catalogue=catalogue, where=path)
        if len(place) != len(catalogue) or len(np.unique(place)) != len(catalogue):
            raise ValueError(
                f"{path}: found {len(place)} rows of {len(np.unique(place))} items, expected each "
                f"of the {len(catalogue)} items of {vectors[0]} once"
            )
        for name in table.column_names[1:]:
            kept[name] = _matrix(table[name], where=f"{path}: {name}")[np.argsort(place)]
    return catalogue, kept


def read_cases(path: Path, *, catalogue: pa.Array) -> Cases:
    """Read user_id, history and targets; a user may have several cases.

    Columns that may be there: `masked` (lists of item ids, instead of the history), and together
    `history_times` (lists as long as the histories) and `at_time`, unix milliseconds.

    Raises:
        ValueError: a missing column, no case, an unknown item, a target twice or in the history.
    """
    present = columns_of(path)
    extra = [name for name in ("masked", "history_times", "at_time") if name in present]
    if ("history_times" in extra) != ("at_time" in extra):
        raise ValueError(
            f"{path}: found the columns {extra}, expected history_times and at_time together"
        )
    table = read(path, "user_id", "history", "targets", *extra)
    if not len(table):
        raise ValueError(f"{path}: found no case, expected at least one")
    padded: dict[str, Tensor] = {}
    matrices: dict[str, sp.csr_matrix] = {}
    for name in ("history", "targets", *(["masked"] if "masked" in extra else [])):
        kind = table[name].type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or table[name].null_count:
            raise ValueError(
                f"{path}: found {name} of type {kind} with {table[name].null_count} nulls, "
                "expected lists of item ids; an empty history is an empty list"
            )
        rows = rows_of(table, catalogue=catalogue, where=path, column=name)
        sizes = pc.list_value_length(table[name]).to_numpy()
        padded[name] = padded_rows(rows, sizes, filler=PADDING)
        case = np.repeat(np.arange(len(table)), sizes)
        matrix = sp.csr_matrix(
            (np.ones(len(rows), np.float32), (case, rows)), shape=(len(table), len(catalogue))
        )
        matrices[name] = matrix
    times_BL, at_times_B = torch.zeros_like(padded["history"]), torch.ones(len(table)).long()
    if "history_times" in extra:
        sizes = pc.list_value_length(table["history"]).to_numpy()
        found = pc.list_value_length(table["history_times"]).to_numpy()
        if not np.array_equal(sizes, found):
            raise ValueError(
                f"{path}: found {int((sizes != found).sum())} cases whose history_times are not as "
                "many as their history, expected one time an event"
            )
        flat = table["history_times"].combine_chunks().flatten().to_numpy().astype(np.int64)
        times_BL = padded_rows(flat, sizes, filler=0)
        at_times_B = torch.from_numpy(table["at_time"].to_numpy().astype(np.int64))
    faults = {
        "repeated targets": int((matrices["targets"].data > 1).sum()),
        "targets inside their history, or inside what is masked instead": matrices["targets"]
        .multiply(matrices.get("masked", matrices["history"]))
        .nnz,
    }
    for fault, count in faults.items():
        if count:
            raise ValueError(f"{path}: found {count} {fault}, expected none; take them out")
    return Cases(
        users_B=torch.from_numpy(_numbered(table["user_id"])),
        history_BL=padded["history"],
        targets_BT=padded["targets"],
        history_BN=matrices["history"],
        masked_BM=padded.get("masked", padded["history"]),
        times_BL=times_BL,
        at_times_B=at_times_B,
    )


def padded_rows(values: Rows, sizes: Rows, *, filler: int) -> Tensor:
    """Lists one after the other → one row a list, filled up behind the last value."""
    ends = np.r_[0, np.cumsum(sizes)]
    case = np.repeat(np.arange(len(sizes)), sizes)
    filled = np.full((len(sizes), max(1, int(sizes.max()))), filler, np.int64)
    filled[case, np.arange(len(values)) - ends[case]] = values
    return torch.from_numpy(filled)


def read_choices(path: Path, *, catalogue: pa.Array) -> sp.csr_matrix:
    """Read user_id and item_id as a matrix [U, N]; a repeated pair adds up."""
    table = read(path, "user_id", "item_id")
    rows, users = rows_of(table, catalogue=catalogue, where=path), _numbered(table["user_id"])
    shape = (int(users.max(initial=-1)) + 1, len(catalogue))
    return sp.csr_matrix((np.ones(len(rows), np.float32), (users, rows)), shape=shape)


def rows_of(table: pa.Table, *, catalogue: pa.Array, where: Path, column: str = "item_id") -> Rows:
    """Catalogue rows of an id column, or of the ids inside a column of lists.

    Raises:
        ValueError: ids that the catalogue does not have, with their count and the first of them.
    """
    ids = table[column].combine_chunks()
    if pa.types.is_list(ids.type) or pa.types.is_large_list(ids.type):
        ids = ids.flatten()
    try:
        found = pc.index_in(ids.cast(catalogue.type), value_set=catalogue)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{where}: found {column} of type {ids.type}, expected the catalogue's {catalogue.type}"
        ) from error
    if found.null_count:
        first = ids.filter(pc.is_null(found))[0].as_py()
        raise ValueError(
            f"{where}: found {found.null_count} values of {column} that the catalogue of "
            f"{len(catalogue)} items does not have, the first is {first!r}; add the items to "
            "the vectors (or to train and candidates), or leave them out"
        )
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def columns_of(path: Path) -> list[str]:
    """Names of a Parquet file's columns."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected Parquet")
    return list(pq.read_schema(path).names)


def read(path: Path, *columns: str) -> pa.Table:
    """Read these columns; a missing one is an error that names those found."""
    found = columns_of(path)
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f"{path}: found columns {found}, expected {missing} too; rename or add")
    return pq.read_table(path, columns=list(columns))


def _sorted(ids: pa.Array) -> pa.Array:
    return ids.take(pc.sort_indices(ids))


def _numbered(column: pa.ChunkedArray) -> Rows:
    """Equal values get equal numbers, from 0."""
    codes = column.combine_chunks().dictionary_encode().indices
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)


def _matrix(column: pa.ChunkedArray, *, where: str) -> Floats:
    array = column.combine_chunks()
    width = len(array[0]) if len(array) and array[0].is_valid else 0
    flat = array.flatten()
    if array.null_count or len(flat) != width * len(array):
        raise ValueError(f"{where}: found vectors of several lengths or nulls, expected one length")
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
