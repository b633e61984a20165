"""The CTR splits as contiguous matrices, and batches as `index_select` on them.

A split is encoded once, a piece after the other, into memory or into files that are mapped. A
catalogue's features are encoded once a row and gathered, not once an impression.

Shapes: N impressions, F single-valued fields, K numeric fields, L history length, M list length,
R rows of a catalogue (its last row stands for an unknown user or item), B impressions of a batch.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.available_memory import available_bytes
from data_prep.dataset import Dataset
from data_prep.events import EventLog
from data_prep.folders import CACHE_VARIABLE
from data_prep.records import MANIFEST_FILE
from data_prep.records import Split as SplitName
from finetune.columns import MappedColumns, Piece, columns_in_memory, write_columns
from finetune.histories import Histories, history_ends
from finetune.learnt_vocabulary import learn_vocabulary
from finetune.settings import InputConfig
from finetune.splits import check_outcome, check_splits, split_pieces
from finetune.vocabulary import ID_FIELDS, CategoricalField, Owner, Vocabulary

logger = logging.getLogger(__name__)

ENCODING_VERSION = 1
"""Of the files that hold an encoded split; others are encoded anew."""
_OUTCOME = "outcome."  # before the names of columns that are never an input
_PIECE_ROWS = 1 << 16  # of days, encoded at a time
_MEMORY_SHARE = 4  # one encoded split may take a quarter of the memory that is free


@dataclass(frozen=True)
class Impressions:
    """One split, encoded; its tensors may be mapped files."""

    ids_NF: Tensor
    """int32 rows of the concatenated embedding table."""
    numeric_NK: Tensor
    """Standardised numbers, NaN where missing."""
    multi: list[Tensor]
    """Per multi field of the context: int32 [N, M], -1 padding."""
    user_N: Tensor
    """User row; the number of users for an unknown one."""
    item_N: Tensor
    """Item row."""
    time_N: Tensor
    """Unix milliseconds."""
    label_N: Tensor
    history_end_N: Tensor
    """Where the history ends in the log of positive events."""
    histories: Histories
    """The log that histories are cut from when they are read."""
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    """Further labels, and position, propensity and treatment, where the dataset has them."""
    mapped: MappedColumns | None = None
    """The files behind the tensors; None: they are in memory."""

    def __len__(self) -> int:
        return len(self.label_N)

    def history_rows(self, rows_B: Tensor) -> Tensor:
        """int32 rows [B, L] of the latest positive items strictly before, -1 at the end."""
        if self.histories.length == 0:
            return torch.empty(len(rows_B), 0, dtype=torch.int32)
        return self.histories.rows(self.user_N[rows_B], self.history_end_N[rows_B])

    @cached_property
    def history_NL(self) -> Tensor:
        """Every history at once, for small splits."""
        return self.histories.rows(self.user_N, self.history_end_N)


@dataclass(frozen=True)
class Catalogue:
    """A users' or items' table, encoded; its last row is that of an unknown user or item."""

    ids_RF: NDArray[np.int32]
    numeric_RK: NDArray[np.float32]
    multi: list[Tensor]
    """Per multi field: int32 [R, M], -1 padding."""


@dataclass
class CtrData:
    """A dataset's impressions, encoded by one vocabulary."""

    dataset: Dataset
    vocabulary: Vocabulary
    history_length: int
    multi_length: int
    memory_mb: int | None = None
    cache_dir: Path | None = None
    test_opened: int = field(default=0, init=False)
    """How often the test split was read; a run may open it once, at its end."""

    @staticmethod
    def learn(
        dataset: Dataset,
        inputs: InputConfig,
        train: pa.Table | None = None,
        *,
        older: Vocabulary | None = None,
    ) -> "CtrData":
        """Build the vocabulary from the training split and refuse empty splits.

        With `train` from those impressions instead, where days take the place of splits. What is
        hashed is up to `older`, where the vocabulary is to grow from that one.
        """
        if train is None:
            check_splits(dataset)
        pieces = split_pieces(dataset, "train") if train is None else [train]
        vocabulary = learn_vocabulary(dataset, inputs, pieces, older=older)
        return CtrData.of(dataset, vocabulary, inputs)

    @staticmethod
    def of(dataset: Dataset, vocabulary: Vocabulary, inputs: InputConfig) -> "CtrData":
        """With a vocabulary that is known."""
        return CtrData(
            dataset,
            vocabulary,
            inputs.history_length,
            inputs.multi_length,
            inputs.memory_mb,
            inputs.cache_dir,
        )

    @cached_property
    def positives(self) -> EventLog:
        """The log that histories are cut from."""
        return self.dataset.events().positives()

    @cached_property
    def histories(self) -> Histories:
        """The same, as batches read it."""
        return Histories.of(self.positives, length=self.history_length)

    @cached_property
    def train(self) -> Impressions:
        """The training impressions."""
        return self._encode_split("train")

    @cached_property
    def valid(self) -> Impressions:
        """The validation impressions: what early stopping looks at."""
        return self._encode_split("valid")

    def open_test(self) -> Impressions:
        """Read and count: the test split is for the one evaluation at a run's end."""
        self.test_opened += 1
        return self._encode_split("test")

    @cached_property
    def users(self) -> Catalogue:
        """The users' features, a row a user and one for unknown users."""
        return self._catalogue("user", self.dataset.users)

    @cached_property
    def items(self) -> Catalogue:
        """The items' features, a row an item and one for none."""
        return self._catalogue("item", self.dataset.items)

    def fields(self, owner: Owner, *, kind: str) -> list[CategoricalField]:
        """Categorical or multi fields of one owner, in the order of the matrices."""
        known = self.vocabulary.categorical
        return [one for one in known if one.owner == owner and one.kind == kind]

    @cached_property
    def item_id_rows(self) -> Tensor:
        """Row of the embedding table for each item row, the last one that of no item."""
        column = [f.name for f in self.fields("item", kind="categorical")].index("item_id")
        return torch.from_numpy(np.ascontiguousarray(self.items.ids_RF[:, column]))

    def encode(self, table: pa.Table) -> Impressions:
        """Impressions with `user_row` (-1: unknown), `item_row`, `time`, `label` and context."""
        return self._impressions(columns_in_memory([self._piece(table)], num_rows=table.num_rows))

    def encode_days(self, table: pa.Table) -> Impressions:
        """The same, a piece after the other, and in files where `memory_mb` is too little.

        The files have no names once they are mapped: they are gone with the impressions.
        """
        num_rows = table.num_rows
        starts = range(0, num_rows, _PIECE_ROWS)
        pieces = (self._piece(table.slice(start, _PIECE_ROWS)) for start in starts)
        if self._row_bytes(table) * num_rows <= self._memory_bytes():
            return self._impressions(columns_in_memory(pieces, num_rows=num_rows))
        root = self._cache_root()
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="days-") as folder:
            write_columns(pieces, Path(folder) / "columns", num_rows=num_rows)
            mapped = MappedColumns.open(Path(folder) / "columns")
        return self._impressions(mapped.tensors, mapped=mapped)

    def _row_bytes(self, table: pa.Table) -> int:
        """What an encoded impression takes."""
        return sum(values.nbytes for values in self._piece(table.slice(0, 1)).values())

    def _encode_split(self, split: SplitName) -> Impressions:
        """A split in memory if it fits, otherwise from its files, which are written once."""
        pieces = (self._piece(table) for table in split_pieces(self.dataset, split))
        num_rows = self.dataset.manifest.counts[f"impressions_{split}"]
        row_bytes = self._row_bytes(next(split_pieces(self.dataset, split)))
        if num_rows * row_bytes <= self._memory_bytes():
            return self._impressions(columns_in_memory(pieces, num_rows=num_rows))
        folder = self._cache_folder(split)
        if not folder.is_dir():
            logger.info("%s: %s: encoding %s impressions", folder, split, f"{num_rows:,}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_columns(pieces, folder, num_rows=num_rows)
        mapped = MappedColumns.open(folder)
        return self._impressions(mapped.tensors, mapped=mapped)

    def _memory_bytes(self) -> float:
        if self.memory_mb is not None:
            return self.memory_mb * 1e6
        return available_bytes() / _MEMORY_SHARE or float("inf")  # 0 where nobody knows

    def _cache_folder(self, split: SplitName) -> Path:
        """Named by all that decides how a split is encoded."""
        about = [ENCODING_VERSION, split, self.multi_length, asdict(self.vocabulary)]
        found = hashlib.sha256((self.dataset.dir / MANIFEST_FILE).read_bytes())
        found.update(json.dumps(about, sort_keys=True).encode())
        return self._cache_root() / f"{split}-{found.hexdigest()[:24]}"

    def _cache_root(self) -> Path:
        if self.cache_dir is not None:
            return self.cache_dir
        given = os.environ.get(CACHE_VARIABLE)
        return (Path(given) if given else Path.home() / ".cache" / "triptych") / "encoded"

    def _impressions(
        self, columns: dict[str, Tensor], mapped: MappedColumns | None = None
    ) -> Impressions:
        lists = sorted(name for name in columns if name.startswith("multi"))
        return Impressions(
            ids_NF=columns["ids"],
            numeric_NK=columns["numeric"],
            multi=[columns[name] for name in lists],
            user_N=columns["user"],
            item_N=columns["item"],
            time_N=columns["time"],
            label_N=columns["label"],
            history_end_N=columns["history_end"],
            histories=self.histories,
            outcomes={
                name.removeprefix(_OUTCOME): column
                for name, column in columns.items()
                if name.startswith(_OUTCOME)
            },
            mapped=mapped,
        )

    def _piece(self, table: pa.Table) -> Piece:
        """Some impressions, encoded."""
        user_N = table["user_row"].to_numpy().astype(np.int64)
        user_N = np.where(user_N < 0, self.dataset.num_users, user_N)
        item_N = table["item_row"].to_numpy().astype(np.int64)
        time_N = table["time"].to_numpy().astype(np.int64)
        context = self.fields("context", kind="categorical")
        ids = [self.users.ids_RF[user_N], self.items.ids_RF[item_N]]
        ids += [one.encode(table[one.name])[:, None] for one in context]
        numeric = [self.users.numeric_RK[user_N], self.items.numeric_RK[item_N]]
        numeric += [
            one.encode(table[one.name])[:, None]
            for one in self.vocabulary.numeric
            if one.owner == "context"
        ]
        lists = self.fields("context", kind="multi")
        return {
            "ids": np.concatenate(ids, axis=1),
            "numeric": np.concatenate(numeric, axis=1),
            **{
                f"multi{place:03d}": one.encode_lists(table[one.name], length=self.multi_length)
                for place, one in enumerate(lists)
            },
            "user": user_N,
            "item": item_N,
            "time": time_N,
            "label": table["label"].to_numpy().astype(np.float32),
            "history_end": history_ends(self.positives, user_N, time_N),
            **self._outcomes(table),
        }

    def _outcomes(self, table: pa.Table) -> Piece:
        """What is never an input; impressions to be scored have none of it."""
        features = self.dataset.manifest.features
        for name, kind in features.label.items():
            if name in table.schema.names:
                check_outcome(table[name], kind, f"{self.dataset.dir}: label {name}")
        return {
            f"{_OUTCOME}{name}": table[name]
            .to_numpy()
            .astype(np.int64 if name == "position" else np.float32)
            for name in (*features.label, *features.exposure)
            if name in table.schema.names
        }

    def _catalogue(self, owner: Owner, table: pa.Table) -> Catalogue:
        single = self.fields(owner, kind="categorical")
        multi = self.fields(owner, kind="multi")
        numeric = [one for one in self.vocabulary.numeric if one.owner == owner]
        num_rows = table.num_rows + 1
        ids_RF = np.empty((num_rows, len(single)), dtype=np.int32)
        for i, one in enumerate(single):
            ids_RF[:-1, i] = one.encode(table[one.name])
            ids_RF[-1, i] = one.unknown if one.name == ID_FIELDS[owner] else one.offset
        numeric_RK = np.full((num_rows, len(numeric)), np.nan, dtype=np.float32)
        for i, number in enumerate(numeric):
            numeric_RK[:-1, i] = number.encode(table[number.name])
        lists = []
        for one in multi:
            rows_RM = np.full((num_rows, self.multi_length), -1, dtype=np.int32)
            rows_RM[:-1] = one.encode_lists(table[one.name], length=self.multi_length)
            rows_RM[-1, 0] = one.offset
            lists.append(torch.from_numpy(rows_RM))
        return Catalogue(ids_RF, numeric_RK, lists)
