"""Which impressions a step sees: a few `index_select` on the matrices of a split.

No worker processes: that costs less than handing a batch from one process to another.

Shapes: N impressions, B impressions of a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from finetune.content import ContentFeatures
from finetune.data import Catalogue, Impressions
from finetune.order import BLOCK_ROWS, SHUFFLE_ROWS, NegativeSampling, epoch_windows

LastBatch = Literal["dropped", "shared"]


@dataclass
class Batch:
    """Impressions of one step; letters as in data.py and content.py.

    Not frozen: Lightning casts a batch to its precision by setting fields of a copy.
    """

    ids_BF: Tensor
    numeric_BK: Tensor
    multi: list[Tensor]
    """Per multi field: int32 [B, M], -1 padding."""
    item_B: Tensor
    history_BL: Tensor
    label_B: Tensor
    user_vector_BW: Tensor | None
    """The user's content vector; None on the rung `none`."""
    similarity_BS: Tensor | None = None
    tiers_BT: Tensor | None = None
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    """Per name [B]: further labels, position, propensity, treatment; never an input."""

    def to(self, device: torch.device) -> "Batch":
        """On another device; Lightning moves batches by this name."""

        def moved(one: Tensor | None) -> Tensor | None:
            return None if one is None else one.to(device)

        return Batch(
            ids_BF=self.ids_BF.to(device),
            numeric_BK=self.numeric_BK.to(device),
            multi=[rows_BM.to(device) for rows_BM in self.multi],
            item_B=self.item_B.to(device),
            history_BL=self.history_BL.to(device),
            label_B=self.label_B.to(device),
            user_vector_BW=moved(self.user_vector_BW),
            similarity_BS=moved(self.similarity_BS),
            tiers_BT=moved(self.tiers_BT),
            outcomes={name: values_B.to(device) for name, values_B in self.outcomes.items()},
        )


@dataclass(frozen=True)
class CtrTable:
    """Everything a model reads of one split."""

    impressions: Impressions
    users: Catalogue
    items: Catalogue
    content: ContentFeatures | None
    shuffle_rows: int = SHUFFLE_ROWS
    """Impressions that an epoch mixes fully."""

    def __len__(self) -> int:
        return len(self.impressions)

    def batch(self, rows_B: Tensor) -> Batch:
        """The impressions at these positions."""
        one = self.impressions
        item_B = one.item_N[rows_B]
        content = self.content
        tiers_NT = None if content is None else content.tiers_NT
        return Batch(
            ids_BF=one.ids_NF.index_select(0, rows_B),
            numeric_BK=one.numeric_NK[rows_B],
            multi=[
                *(table_RM[one.user_N[rows_B]] for table_RM in self.users.multi),
                *(table_RM[item_B] for table_RM in self.items.multi),
                *(rows_NM[rows_B] for rows_NM in one.multi),
            ],
            item_B=item_B,
            history_BL=one.history_rows(rows_B),
            label_B=one.label_N[rows_B],
            user_vector_BW=None if content is None else content.user_vectors(rows_B),
            similarity_BS=None if content is None else content.similarity_NS[rows_B],
            tiers_BT=None if tiers_NT is None else tiers_NT[rows_B],
            outcomes={name: values_N[rows_B] for name, values_N in one.outcomes.items()},
        )


def num_training_rows(impressions: Impressions, *, negative_rate: float) -> int:
    """Impressions that an epoch trains on."""
    sampling = _sampling(impressions, negative_rate)
    return sampling.num_kept if sampling else len(impressions)


def _sampling(impressions: Impressions, negative_rate: float) -> NegativeSampling | None:
    if negative_rate == 1:
        return None
    return NegativeSampling.of(impressions.label_N.numpy(), negative_rate)


class TrainBatches:
    """One epoch of training batches, those of this rank.

    A step's global batch does not depend on the number of ranks; rank r takes every world-th
    impression of it. The last, partial global batch is left out (`dropped`): its gradient is the
    noisiest, and another epoch mixes anew. Where there is no other epoch it is `shared`: batches
    are as near to `batch_size` as they can be alike, and hold every impression, or of several ranks
    all but fewer than there are ranks.
    """

    def __init__(
        self,
        table: CtrTable,
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        negative_rate: float = 1.0,
        last_batch: LastBatch = "dropped",
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"train.batch_size: found {batch_size}, expected a multiple of the {world} ranks"
            )
        self.table = table
        self.sampling = _sampling(table.impressions, negative_rate)
        self.num_rows = self.sampling.num_kept if self.sampling else len(table)
        if self.num_rows < world:
            raise ValueError(
                f"training: found {self.num_rows} impressions to train on, expected at least one "
                f"for each of the {world} ranks; use fewer devices, a higher train.negative_rate "
                "or more impressions"
            )
        a_rank = self.num_rows // world
        self.batch_size = min(batch_size, a_rank * world)
        steps = self.num_rows // self.batch_size
        self.bounds = [step * self.batch_size for step in range(steps + 1)]
        if last_batch == "shared":
            steps = min(max(1, round(self.num_rows / self.batch_size)), a_rank)
            self.bounds = [step * a_rank // steps * world for step in range(steps + 1)]
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        mapped = self.table.impressions.mapped
        windows = epoch_windows(
            len(self.table),
            seed=self.seed,
            epoch=self.epoch(),
            shuffle_rows=self.table.shuffle_rows,
            sampling=self.sampling,
        )
        left, step = np.empty(0, np.int64), 0
        for window in windows:
            if mapped is not None:
                mapped.release()
                mapped.will_need(window.starts, BLOCK_ROWS)
            rows = np.concatenate([left, window.rows]) if len(left) else window.rows
            first = self.bounds[step]  # where these rows begin in the epoch
            while step < len(self) and self.bounds[step + 1] - first <= len(rows):
                start, stop = self.bounds[step] - first, self.bounds[step + 1] - first
                of_rank = rows[start + self.rank : stop : self.world]
                yield self.table.batch(torch.from_numpy(of_rank))
                step += 1
            left = rows[self.bounds[step] - first :]


class EvalBatches:
    """Every impression once, in order."""

    def __init__(self, table: CtrTable, *, batch_size: int = 4096) -> None:
        self.table = table
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.table) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        mapped, held = self.table.impressions.mapped, 0
        for start in range(0, len(self.table), self.batch_size):
            stop = min(start + self.batch_size, len(self.table))
            yield self.table.batch(torch.arange(start, stop))
            held += self.batch_size
            if mapped is not None and held >= self.table.shuffle_rows:
                mapped.release()
                held = 0
