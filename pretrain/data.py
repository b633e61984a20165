"""The dataset folder as Lightning's batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_prep.behaviour_pairs import ItemPairs, behaviour_pairs
from data_prep.dataset import Dataset as TriptychDataset
from data_prep.dataset import open_dataset
from pretrain.batch import Batch, QueryBatch
from pretrain.collectives import world_size
from pretrain.content_groups import content_groups, modality_groups
from pretrain.data_config import DataConfig
from pretrain.feature_cache import FeatureCache
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.samples import Windows, cut_windows, num_steps, target_probability
from pretrain.steps import EpochSteps, QueryBatches, TrainSteps
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig
from pretrain.user_features import UserColumn, encode_users, fit_user_columns, keep_earlier

log = logging.getLogger(__name__)

ORDER_SETTINGS = ("seed", "global_batch_size", "targets_per_sample", "item_pairs", "set_split")
"""Of DataConfig: with these, the step number says which samples come next."""


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
        self.modality_groups = {
            name: groups
            for name, groups in modality_groups(self.dataset.items).items()
            if name in towers
        }
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

    def state_dict(self) -> dict[str, Any]:
        """What the samples of a step depend on, beside the dataset and the model."""
        return {name: getattr(self.config, name) for name in ORDER_SETTINGS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other samples than those of the run that was interrupted.

        Raises:
            ValueError: a setting was changed since.
        """
        for name, before in state_dict.items():
            now = getattr(self.config, name)
            if now != before:
                raise ValueError(
                    f"data.config.{name}: found {now}, expected {before}, as the checkpoint was "
                    "trained with; samples would be left out or seen twice. Set it back, or choose "
                    "another run.dir and model.reuse.warm_start"
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
            modality_groups=self.modality_groups,
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
