"""The CTR splits as contiguous matrices, and batches as `index_select` on them.

A catalogue's features are encoded once a row and gathered, not once an impression.

Shapes: N impressions, F single-valued fields, K numeric fields, L history length, M list length,
R rows of a catalogue (its last row stands for an unknown user or item), B impressions of a batch.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.dataset import Dataset
from data_prep.events import EventLog
from data_prep.records import SPLITS
from data_prep.records import Split as SplitName
from finetune.input_checks import check_split
from finetune.settings import InputConfig
from finetune.vocabulary import ID_FIELDS, CategoricalField, Owner, Vocabulary, build_vocabulary

logger = logging.getLogger(__name__)

_HISTORY_CHUNK = 262_144  # impressions whose int64 histories are held at once


@dataclass(frozen=True)
class Impressions:
    """One split, encoded."""

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
    history_NL: Tensor
    """int32 rows of the latest positive items strictly before, oldest first, -1 at the end."""
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    """Further labels, and position, propensity and treatment, where the dataset has them."""

    def __len__(self) -> int:
        return len(self.label_N)


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
    test_opened: int = field(default=0, init=False)
    """How often the test split was read; a run may open it once, at its end."""

    @staticmethod
    def learn(dataset: Dataset, inputs: InputConfig) -> "CtrData":
        """Build the vocabulary from the training split and refuse empty splits."""
        check_splits(dataset)
        train = read_split(dataset, "train")
        features = dataset.manifest.features
        rows: dict[Owner, NDArray[np.integer]] = {
            "user": train["user_row"].to_numpy(),
            "item": train["item_row"].to_numpy(),
            "context": np.arange(train.num_rows),
        }
        tables: dict[Owner, pa.Table] = {
            "user": dataset.users,
            "item": dataset.items,
            "context": train,
        }
        vocabulary = build_vocabulary(
            {
                "user": dict(features.user),
                "item": dict(features.item),
                "context": dict(features.context),
            },
            lambda owner, name: tables[owner][name],
            train_rows=rows,
            min_count=inputs.min_count,
        )
        return CtrData(dataset, vocabulary, inputs.history_length, inputs.multi_length)

    @cached_property
    def positives(self) -> EventLog:
        """The log that histories are cut from."""
        return self.dataset.events().positives()

    @cached_property
    def train(self) -> Impressions:
        """The training impressions."""
        return self.encode(read_split(self.dataset, "train"))

    @cached_property
    def valid(self) -> Impressions:
        """The validation impressions: what early stopping looks at."""
        return self.encode(read_split(self.dataset, "valid"))

    def open_test(self) -> Impressions:
        """Read and count: the test split is for the one evaluation at a run's end."""
        self.test_opened += 1
        return self.encode(read_split(self.dataset, "test"))

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
        return Impressions(
            ids_NF=torch.from_numpy(np.concatenate(ids, axis=1)),
            numeric_NK=torch.from_numpy(np.concatenate(numeric, axis=1)),
            multi=[
                torch.from_numpy(one.encode_lists(table[one.name], length=self.multi_length))
                for one in self.fields("context", kind="multi")
            ],
            user_N=torch.from_numpy(user_N),
            item_N=torch.from_numpy(item_N),
            time_N=torch.from_numpy(time_N),
            label_N=torch.from_numpy(table["label"].to_numpy().astype(np.float32)),
            history_NL=torch.from_numpy(self._histories(user_N, time_N)),
            outcomes=self._outcomes(table),
        )

    def _outcomes(self, table: pa.Table) -> dict[str, Tensor]:
        """What is never an input; impressions to be scored have none of it."""
        features = self.dataset.manifest.features
        names = [
            name for name in (*features.label, *features.exposure) if name in table.schema.names
        ]
        found = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in names}
        return {
            name: values_N.long() if name == "position" else values_N.float()
            for name, values_N in found.items()
        }

    def _histories(self, user_N: NDArray[np.int64], time_N: NDArray[np.int64]) -> NDArray[np.int32]:
        history_NL = np.full((len(user_N), self.history_length), -1, dtype=np.int32)
        known = np.flatnonzero(user_N < self.dataset.num_users)
        for start in range(0, len(known), _HISTORY_CHUNK):
            rows = known[start : start + _HISTORY_CHUNK]
            items, _ = self.positives.histories(
                user_N[rows], time_N[rows], length=self.history_length
            )
            history_NL[rows] = items
        return history_NL

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


def check_splits(dataset: Dataset) -> None:
    """Refuse a dataset with an empty split, by its manifest: test itself stays closed."""
    for split in SPLITS:
        _check_not_empty(dataset, split, dataset.manifest.counts.get(f"impressions_{split}", 0))


def _check_not_empty(dataset: Dataset, split: SplitName, num_impressions: int) -> None:
    if num_impressions == 0:
        cutoffs = dataset.manifest.cutoffs
        raise ValueError(
            f"{dataset.dir}/ctr/{split}: found no impressions, expected some in each of {SPLITS} "
            f"(valid_start {cutoffs.valid_start}, test_start {cutoffs.test_start}); move the "
            "cut-offs or map an `impressions` table, and re-run python -m data_prep shard"
        )


def read_split(dataset: Dataset, split: SplitName) -> pa.Table:
    """One split's impressions; refuses an empty split and whatever `check_split` refuses."""
    table = dataset.impressions(split)
    _check_not_empty(dataset, split, table.num_rows)
    check_split(table, dataset, split)
    return table
