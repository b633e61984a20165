"""The dataset folder as Lightning's batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.dataset import Dataset as TriptychDataset
from data_prep.dataset import open_dataset
from data_prep.events import EventLog
from pretrain.batch import Batch, QueryBatch
from pretrain.collectives import rank, world_size
from pretrain.feature_cache import FeatureCache
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.samples import (
    SetSplit,
    Windows,
    cut_windows,
    draw_samples,
    global_batch,
    num_steps,
    rank_slice,
)
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is and how it is cut into steps."""

    dataset_dir: Path
    """Dataset folder of python -m data_prep shard."""

    features_dir: Path | None = None
    """Cached backbone features of python -m pretrain features; the towers are then not run."""

    global_batch_size: int = 256
    """Samples (windows of users' events) of all ranks together in one step."""

    targets_per_sample: int = 8
    """Events of a window that are predicted in one step, drawn anew each epoch."""

    set_split: SetSplit = "half"
    """Where order is unknown, how much of a window is predicted from the rest: half, or with `any`
    each number of events with equal chance. At most targets_per_sample; what is left is read."""

    seed: int = 0
    """Seed of the order of samples and of the targets drawn."""

    valid_queries: int = 2000
    """Validation queries, drawn once from the positives of the validation period."""

    decode_threads: int = 1
    """Threads of each rank that decode pictures."""

    cache_mb: int = 512
    """Decoded pictures each rank keeps in memory, in MiB."""

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "targets_per_sample", "decode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if self.valid_queries < 0 or self.cache_mb < 0:
            raise ValueError(
                f"data.valid_queries and data.cache_mb must not be negative, got "
                f"{self.valid_queries} and {self.cache_mb}"
            )


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
    ) -> None:
        self.events, self.windows, self.items = events, windows, items
        self.config, self.user = config, user

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
        samples = draw_samples(
            self.events,
            self.windows,
            batch=batch,
            part=rank_slice(batch, rank=rank(), num_ranks=world_size()),
            length=self.user.history_length,
            num_targets=config.targets_per_sample,
            order=self.user.order,
            seed=config.seed,
            epoch=epoch,
            step=step,
            set_split=config.set_split,
        )
        named = np.concatenate([samples.history_BL.ravel(), samples.targets_BT.ravel()])
        rows, inverse = np.unique(named, return_inverse=True)
        if rows[0] < 0:  # the padding is no item
            rows, inverse = rows[1:], inverse - 1
        split = samples.history_BL.size
        return Batch(
            items=self.items.load(rows),
            history_BL=torch.from_numpy(inverse[:split].reshape(samples.history_BL.shape)),
            times_BL=torch.from_numpy(samples.times_BL),
            targets_BT=torch.from_numpy(inverse[split:].reshape(samples.targets_BT.shape)),
            states_BT=torch.from_numpy(samples.states_BT),
        )


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
        self, events: EventLog, *, chosen: NDArray[np.int64], user: UserEncoderConfig, size: int
    ) -> None:
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
        masked, _ = self.events.histories(user, at, length=4 * self.user.history_length)
        targets = np.where(real, self.events.item_rows[event].astype(np.int64), -1)
        return QueryBatch(
            history_BL=torch.from_numpy(history),
            times_BL=torch.from_numpy(times),
            targets_B=torch.from_numpy(targets),
            at_times_B=torch.from_numpy(at),
            masked_BM=torch.from_numpy(masked),
        )


class PretrainData(pl.LightningDataModule):
    """Training steps from events before `valid_start`; validation queries from those after it."""

    def __init__(self, config: DataConfig) -> None:
        """Where the data is and how it is cut into steps."""
        super().__init__()
        self.config = config
        self.start_step = 0
        self.windows: Windows | None = None
        self._opened: TriptychDataset | None = None

    @property
    def dataset(self) -> TriptychDataset:
        """The dataset folder, opened on first use."""
        if self._opened is None:
            self._opened = open_dataset(self.config.dataset_dir)
        return self._opened

    def prepare(self, *, towers: Mapping[str, TowerConfig], user: UserEncoderConfig) -> None:
        """Open everything for these towers, once; training calls it before anything else.

        Raises:
            ValueError: no training events, features that are of other towers or another dataset.
        """
        if self.windows is not None:
            return
        manifest = self.dataset.manifest
        self.features = (
            FeatureCache.open(self.config.features_dir, dataset=self.dataset, towers=towers)
            if self.config.features_dir
            else None
        )
        self.items = ItemLoader(
            self.dataset,
            preprocessors=preprocessors_of(
                self.dataset, towers, threads=self.config.decode_threads
            ),
            features=self.features,
            cache_mb=self.config.cache_mb,
        )
        self.user = user
        positives = self.dataset.events().positives()
        cutoffs = manifest.cutoffs
        self.train_events = positives.before(cutoffs.valid_start)
        self.windows = cut_windows(self.train_events, length=user.history_length, order=user.order)
        if not len(self.windows):
            raise ValueError(
                f"{self.config.dataset_dir}: no positive event before valid_start "
                f"({cutoffs.valid_start} ms) can be trained on; check the split and the label "
                "in the settings of python -m data_prep shard"
            )
        # Queries are drawn from every user's validation events; their histories see no more.
        self.valid_events = positives.before(cutoffs.test_start)
        after = np.flatnonzero(self.valid_events.times >= cutoffs.valid_start)
        rng = np.random.default_rng([self.config.seed, 2])
        count = min(self.config.valid_queries, len(after))
        self.valid_chosen = np.sort(rng.choice(after, count, replace=False)) if count else after[:0]
        counts = np.bincount(self.train_events.item_rows, minlength=self.dataset.num_items)
        self.item_probability = torch.from_numpy(counts / max(1, counts.sum())).float()
        self.steps_per_epoch = num_steps(
            len(self.windows), global_batch_size=self.config.global_batch_size
        )
        log.info(
            "%s: %d items, %d training events in %d windows, %d steps an epoch, %d queries",
            manifest.name,
            self.dataset.num_items,
            len(self.train_events),
            len(self.windows),
            self.steps_per_epoch,
            count,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Every epoch's steps; the first epoch's from `start_step` on, after a resume."""
        assert self.windows is not None
        if len(self.windows) < world_size():
            raise ValueError(
                f"{self.config.dataset_dir}: {len(self.windows)} windows of training events for "
                f"{world_size()} processes; start fewer"
            )
        steps = TrainSteps(
            self.train_events,
            self.windows,
            items=self.items,
            config=self.config,
            user=self.user,
        )
        sampler = EpochSteps(len(steps), start=self.start_step)
        return DataLoader(steps, batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[QueryBatch] | list[DataLoader[QueryBatch]]:
        """Validation queries; no loader at all where the validation period is empty."""
        if not len(self.valid_chosen):
            return []
        queries = QueryBatches(
            self.valid_events, chosen=self.valid_chosen, user=self.user, size=256
        )
        return DataLoader(queries, batch_size=None)
