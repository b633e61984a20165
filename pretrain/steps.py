"""What each step, and each validation batch, of a rank is: indices to batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data_prep.behaviour_pairs import ItemPairs
from data_prep.events import EventLog
from pretrain.batch import Batch, QueryBatch
from pretrain.collectives import rank, world_size
from pretrain.data_config import DataConfig
from pretrain.item_loader import ItemLoader
from pretrain.samples import Windows, draw_pairs, draw_samples, global_batch, num_steps, rank_slice
from pretrain.user_encoder import UserEncoderConfig


class TrainSteps(Dataset[Batch]):
    """(epoch, step) → this rank's batch."""

    def __init__(
        self,
        events: EventLog,
        windows: Windows,
        *,
        items: ItemLoader,
        config: DataConfig,
        user: UserEncoderConfig,
        groups: NDArray[np.int64],
        modality_groups: Mapping[str, NDArray[np.int64]],
        pairs: ItemPairs | None = None,
        users_UC: Tensor | None = None,
    ) -> None:
        self.events, self.windows, self.items = events, windows, items
        self.users_UC = users_UC
        self.config, self.user = config, user
        self.groups, self.modality_groups, self.pairs = groups, modality_groups, pairs

    def __len__(self) -> int:
        return num_steps(len(self.windows), global_batch_size=self.config.global_batch_size)

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        epoch, step = index
        config = self.config
        batch = global_batch(
            len(self.windows),
            seed=config.seed,
            epoch=epoch,
            step=step,
            global_batch_size=config.global_batch_size,
        )
        part = rank_slice(batch, rank=rank(), num_ranks=world_size())
        samples = draw_samples(
            self.events,
            self.windows,
            batch=batch,
            part=part,
            length=self.user.history_length,
            num_targets=config.targets_per_sample,
            order=self.user.order,
            seed=config.seed,
            epoch=epoch,
            step=step,
            set_split=config.set_split,
        ).without_padding()
        parts = [samples.history_BL, samples.targets_BT]
        if self.pairs is not None:
            drawn = draw_pairs(
                self.pairs, count=config.item_pairs, seed=config.seed, epoch=epoch, step=step
            )
            parts.append(drawn[rank_slice(drawn, rank=rank(), num_ranks=world_size())])
        rows, (history, targets, *pairs) = _positions(parts, encode=config.encode)
        return Batch(
            items=self.items.load(rows),
            history_BL=torch.from_numpy(history),
            times_BL=torch.from_numpy(samples.times_BL),
            targets_BT=torch.from_numpy(targets),
            states_BT=torch.from_numpy(samples.states_BT),
            groups_n=torch.from_numpy(self.groups[rows]),
            modality_groups_n={
                name: torch.from_numpy(groups[rows])
                for name, groups in self.modality_groups.items()
            },
            pairs_K2=torch.from_numpy(pairs[0]) if pairs else None,
            users_BC=self._users(batch[part]),
        )

    def _users(self, windows: NDArray[np.int64]) -> Tensor | None:
        """Features of the users of these windows."""
        if self.users_UC is None:
            return None
        starts = self.windows.starts[windows]
        return self.users_UC[np.searchsorted(self.events.offsets, starts, side="right") - 1]


def _positions(
    parts: list[NDArray[np.int64]], *, encode: Literal["distinct", "every_reference"]
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The items to encode, and each matrix of item rows as positions among them; -1 stays."""
    named = np.concatenate([part.ravel() for part in parts])
    if encode == "distinct":
        rows, inverse = np.unique(named, return_inverse=True)
        if rows[0] < 0:  # the padding is no item
            rows, inverse = rows[1:], inverse - 1
    else:
        rows = named[named >= 0]
        inverse = np.where(named >= 0, np.cumsum(named >= 0) - 1, -1)
    ends = np.cumsum([part.size for part in parts])[:-1]
    places = np.split(inverse, ends)
    return rows, [place.reshape(part.shape) for place, part in zip(places, parts, strict=True)]


class EpochSteps(Sampler[tuple[int, int]]):
    """The steps of one epoch after the other; the first from where an interrupted run stopped."""

    def __init__(self, num_steps: int, *, start: int) -> None:
        self.num_steps, self.start, self.epoch = num_steps, start, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Lazy: after a resume Lightning takes the iterator before it says which epoch it is for.
        start, self.start = self.start, 0
        for step in range(start, self.num_steps):
            yield self.epoch, step

    def __len__(self) -> int:
        # The whole epoch, also after a resume: Lightning compares its own batch number with it.
        return self.num_steps


class QueryBatches(Dataset[QueryBatch]):
    """Validation queries, the same number of batches on every rank."""

    def __init__(
        self,
        events: EventLog,
        *,
        chosen: NDArray[np.int64],
        user: UserEncoderConfig,
        size: int,
        users_UC: Tensor | None = None,
    ) -> None:
        self.users_UC = users_UC
        self.events, self.chosen, self.user, self.size = events, chosen, user, size
        self.users = events.user_rows()[chosen] if len(chosen) else chosen

    def __len__(self) -> int:
        per_rank = -(-len(self.chosen) // world_size())
        return -(-per_rank // self.size)

    def __getitem__(self, number: int) -> QueryBatch:
        places = (np.arange(self.size) + number * self.size) * world_size() + rank()
        real = places < len(self.chosen)
        places = np.minimum(places, len(self.chosen) - 1)
        event, user = self.chosen[places], self.users[places]
        at = self.events.times[event]
        history, times = self.events.histories(user, at, length=self.user.history_length)
        longest = max(1, int((history >= 0).sum(1).max()))
        history, times = history[:, :longest], times[:, :longest]
        masked, _ = self.events.histories(user, at, length=4 * self.user.history_length)
        targets = np.where(real, self.events.item_rows[event].astype(np.int64), -1)
        return QueryBatch(
            history_BL=torch.from_numpy(history),
            times_BL=torch.from_numpy(times),
            targets_B=torch.from_numpy(targets),
            at_times_B=torch.from_numpy(at),
            masked_BM=torch.from_numpy(masked),
            users_BC=None if self.users_UC is None else self.users_UC[user],
        )
