"""The dataset folder as Lightning's batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.behaviour_pairs import ItemPairs, PairConfig, behaviour_pairs
from data_prep.dataset import Dataset as TriptychDataset
from data_prep.dataset import open_dataset
from data_prep.events import EventLog
from pretrain.batch import Batch, QueryBatch
from pretrain.collectives import rank, world_size
from pretrain.content_groups import content_groups
from pretrain.feature_cache import FeatureCache
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.samples import (
    SetSplit,
    Windows,
    cut_windows,
    draw_pairs,
    draw_samples,
    global_batch,
    num_steps,
    rank_slice,
    target_probability,
)
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig
from pretrain.user_features import UserColumn, encode_users, fit_user_columns, keep_earlier

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

    item_pairs: int = 0
    """Item-item pairs of all ranks together in one step, for `loss.behaviour_weight`."""

    pairs: PairConfig = field(default_factory=PairConfig)
    """Which items belong together by behaviour."""

    encode: Literal["distinct", "every_reference"] = "distinct"
    """Whether an item that a batch names several times is read and encoded once, or each time
    (the same loss at a higher cost: what de-duplication is measured against)."""

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
        for name in ("valid_queries", "cache_mb", "item_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")


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
        pairs: ItemPairs | None = None,
        users_UC: Tensor | None = None,
    ) -> None:
        self.events, self.windows, self.items = events, windows, items
        self.users_UC = users_UC
        self.config, self.user = config, user
        self.groups, self.pairs = groups, pairs

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

    def prepare(
        self,
        *,
        towers: Mapping[str, TowerConfig],
        user: UserEncoderConfig,
        earlier_columns: Sequence[UserColumn] = (),
    ) -> None:
        """Open everything for these towers, once; training calls it before anything else.

        `earlier_columns` are those of a release that training goes on from.

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
        fresh_columns = fit_user_columns(
            self.dataset.users,
            types=manifest.features.user,
            names=user.features,
            train_U=np.diff(self.train_events.offsets) > 0,
        )
        self.user_columns = keep_earlier(fresh_columns, earlier_columns)
        self.users_UC = (
            encode_users(self.dataset.users, self.user_columns) if self.user_columns else None
        )
        counts = np.bincount(self.train_events.item_rows, minlength=self.dataset.num_items)
        self.item_probability = torch.from_numpy(counts / max(1, counts.sum())).float()
        """Shares of training events: an item is warm where it is positive."""
        self.target_probability = torch.from_numpy(
            target_probability(
                self.train_events,
                self.windows,
                num_items=self.dataset.num_items,
                num_targets=self.config.targets_per_sample,
                order=user.order,
                set_split=self.config.set_split,
            )
        ).float()
        self.groups = content_groups(self.dataset.items)
        self.pairs: ItemPairs | None = None
        self.pair_probability: Tensor | None = None
        if self.config.item_pairs:
            self.pairs = behaviour_pairs(self.train_events, self.config.pairs)
            if not len(self.pairs):
                raise ValueError(
                    f"{self.config.dataset_dir}: no two items belong together by data.pairs, "
                    "widen it or set data.item_pairs to 0"
                )
            probability = self.pairs.target_probability(self.dataset.num_items)
            self.pair_probability = torch.from_numpy(probability).float()
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

    def move_probabilities(self, device: torch.device) -> None:
        """Keep what logQ needs where the loss is."""
        self.target_probability = self.target_probability.to(device)
        if self.pair_probability is not None:
            self.pair_probability = self.pair_probability.to(device)

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
            groups=self.groups,
            pairs=self.pairs,
            users_UC=self.users_UC,
        )
        sampler = EpochSteps(len(steps), start=self.start_step)
        return DataLoader(steps, batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[QueryBatch] | list[DataLoader[QueryBatch]]:
        """Validation queries; no loader at all where the validation period is empty."""
        if not len(self.valid_chosen):
            return []
        queries = QueryBatches(
            self.valid_events,
            chosen=self.valid_chosen,
            user=self.user,
            size=256,
            users_UC=self.users_UC,
        )
        return DataLoader(queries, batch_size=None)
