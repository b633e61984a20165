"""The two encoders as a LightningModule: steps, logged names, optimizer, validation."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from data_prep.records import replace_file
from pretrain import heartbeat
from pretrain.batch import Batch, QueryBatch
from pretrain.collectives import gather_rows, rank, sum_over_ranks, world_size
from pretrain.data import PretrainData
from pretrain.export import BACKBONES_FILE, RUN_FILE, describe_run
from pretrain.feature_cache import saved_architectures
from pretrain.item_encoder import Adapter
from pretrain.item_loader import ItemLoader, vector_widths_of
from pretrain.loss_state import LossState
from pretrain.metrics import ndcg_at_k, recall_at_k, target_ranks
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.negatives import warn_few_negatives, warn_small_queue
from pretrain.nonfinite import with_its_gradient
from pretrain.objective import LossConfig, objective
from pretrain.optim import OptimConfig, build_optimizer, warmup_cosine
from pretrain.resume import go_on_after_batch, seed_step
from pretrain.reuse import ReuseConfig, Reused
from pretrain.towers import Backbone, build_backbone

log = logging.getLogger(__name__)

CUTOFFS = (10, 20, 50)
CATALOGUE_CHUNK = 512
CALIBRATION_ITEMS, CACHED_CALIBRATION_ITEMS = 512, 4096
"""Items from whose features the adapters start, where towers must encode them first and where
features are cached; the same ones on every rank."""


class PretrainModule(pl.LightningModule):
    """Trains both encoders; validates by ranking the whole catalogue."""

    def __init__(
        self,
        encoders: ModelConfig,
        loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
        optim: OptimConfig = OptimConfig(),  # noqa: B008 - frozen
        reuse: ReuseConfig = ReuseConfig(),  # noqa: B008 - frozen
    ) -> None:
        """Describe the run; the model itself is built when the dataset is known.

        Args:
            encoders: architecture.
            loss: objective.
            optim: optimizer and schedule.
            reuse: earlier releases that the run builds on.
        """
        super().__init__()
        self.encoders, self.loss_config, self.optim_config = encoders, loss, optim
        self.model: TwoSpaceModel | None = None
        self.loss_state: LossState | None = None
        self.reuse = reuse
        self.reused: Reused | None = None
        self.step_values: dict[str, Tensor] = {}
        """Loss and report of this rank's last step."""

    @property
    def data(self) -> PretrainData:
        """The datamodule of the trainer."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, PretrainData)
        return datamodule

    def prepare(self, data: PretrainData) -> Reused:
        """Open all that the run reads, once.

        Raises:
            ValueError: something is wrong with the data or with what is reused.
        """
        if self.reused is not None:
            return self.reused
        reused = self.reuse.open(data.dataset, model=self.encoders)
        for weight, setting, known in (
            ("distil_weight", "teacher", reused.teacher),
            ("compatibility_weight", "old_space", reused.old),
            ("collaborative_weight", "collaborative", reused.collaborative),
        ):
            if (getattr(self.loss_config, weight) > 0) != (known is not None):
                raise ValueError(
                    f"loss.{weight} is {getattr(self.loss_config, weight)} and model.reuse."
                    f"{setting} {getattr(self.reuse, setting)}; set both, or neither"
                )
        data.prepare(
            towers=self.encoders.towers,
            user=self.encoders.user,
            earlier_columns=reused.user_columns,
        )
        self.reused = reused
        return reused

    def configure_model(self) -> None:
        """Build the model for the dataset at hand."""
        if self.model is not None:
            return
        reused = self.prepare(self.data)
        earlier = reused.earlier
        backbones: dict[str, Backbone] = {}
        if self.data.features is None:
            given = vector_widths_of(self.data.dataset)
            backbones = {
                name: build_backbone(
                    name,
                    tower,
                    given_width=given.get(name),
                    start=None if earlier is None else earlier.tower_weights(name),
                )
                for name, tower in self.encoders.towers.items()
            }
            widths = {name: backbone.width for name, backbone in backbones.items()}
        else:
            widths = self.data.features.widths
        num_items = self.data.dataset.num_items
        self.model = TwoSpaceModel(
            self.encoders,
            backbones=backbones,
            feature_widths=widths,
            num_items=num_items,
            user_columns=self.data.user_columns,
        )
        if not self.encoders.towers:
            # As unknown as a new item is: a random direction would be somebody's neighbour.
            self.model.forget_ids((self.data.item_probability == 0).nonzero().flatten())
        if earlier is None:
            cached = self.data.features is not None
            count = min(num_items, CACHED_CALIBRATION_ITEMS if cached else CALIBRATION_ITEMS)
            rows = np.linspace(0, num_items - 1, count).astype(np.int64)
            self.model.item_encoder.calibrate(self.data.items.load(rows))
        else:
            count = earlier.load_into(
                self.model,
                item_ids=self.data.dataset.items["item_id"].combine_chunks(),
                features_dir=self.data.config.features_dir,
            )
            log.info("%s knew %d of %d items", earlier.folder, count, num_items)
            earlier.weights.clear()  # a second copy of every tower
        if (self.loss_config.behaviour_weight > 0) != (self.data.config.item_pairs > 0):
            raise ValueError(
                f"loss.behaviour_weight is {self.loss_config.behaviour_weight} and data.item_pairs "
                f"{self.data.config.item_pairs}; set both, or neither"
            )
        self.loss_state = self.loss_config.state(
            width=self.encoders.width,
            temperature=self.encoders.temperature,
            target_width=None if reused.collaborative is None else reused.collaborative.width,
        )
        self._architectures = {name: one.architecture() for name, one in backbones.items()}

    def on_fit_start(self) -> None:
        """Leave beside the checkpoints what a release needs to say of itself."""
        if not self.trainer.is_global_zero:
            return
        assert self.model is not None
        assert self.reused is not None
        run_dir, features_dir = Path(self.trainer.default_root_dir), self.data.config.features_dir
        architectures = self._architectures
        if features_dir is not None:
            saved = saved_architectures(features_dir)
            architectures = {name: saved[name] for name in self.encoders.towers}
            replace_file(run_dir / BACKBONES_FILE, (features_dir / BACKBONES_FILE).read_bytes())
        run = describe_run(
            self.encoders,
            dataset=self.data.dataset,
            architectures=architectures,
            feature_widths={
                name: adapter.feature_width
                for name, adapter in self.model.item_encoder.adapters.items()
                if isinstance(adapter, Adapter)
            },
            user_columns=self.data.user_columns,
            reused=self.reused.provenance(),
        )
        replace_file(run_dir / RUN_FILE, run.to_json().encode())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One global batch."""
        assert self.model is not None
        assert self.reused is not None
        data = self.data
        data.move_probabilities(self.device)
        step = self.current_epoch * data.steps_per_epoch + batch_idx
        seed_step(step)
        with self.autocast():
            result = objective(
                self.model,
                batch,
                config=self.loss_config,
                item_probability_N=data.target_probability,
                step=step,
                state=self.loss_state,
                pair_probability_N=data.pair_probability,
                teacher=self.reused.teacher,
                old=self.reused.old,
                id_vectors=self.reused.collaborative,
            )
        self.step_values = {"loss": result.loss.detach()} | result.report
        self.log("train/loss", result.loss, prog_bar=True, batch_size=1)
        for name, value in result.report.items():
            self.log(f"train/{name}", value.float(), batch_size=1)
        if batch_idx % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            warn_few_negatives(result.report, floor=self.loss_config.floor)
            warn_small_queue(result.report, size=self.loss_config.queue_size)
        return with_its_gradient(result.loss)

    def autocast(self) -> torch.autocast:
        """bf16 for matrix products where the trainer asks for `bf16-mixed`, under ZeRO too."""
        enabled = self.trainer.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up and cosine over the steps of the whole run."""
        optimizer = build_optimizer(self, self.optim_config)
        total_steps = self.total_steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(step, config=self.optim_config, total_steps=total_steps),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def total_steps(self) -> int:
        """Optimizer steps of the whole run, resumed or not."""
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        per_epoch = math.ceil(self.data.steps_per_epoch / trainer.accumulate_grad_batches)
        return per_epoch * max(1, trainer.max_epochs or 1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the batch after the last one that was finished."""
        self.data.start_step = go_on_after_batch(checkpoint["loops"]["fit_loop"])

    # ------------------------------------------------------------------ validation
    def on_validation_epoch_start(self) -> None:
        """Encode the catalogue, each rank its part."""
        self._item_ND, self._event_ND = self.encode_catalogue(self.data.items)
        popular_N = self.data.item_probability > 0
        self._warm_N = popular_N.to(self.device)
        # slices (all, warm, cold) × (queries, recall and NDCG at each cut-off)
        self._sums = torch.zeros(3, 1 + 2 * len(CUTOFFS), dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def encode_catalogue(self, items: ItemLoader) -> tuple[Tensor, Tensor]:
        """Vectors [N, D] of all items, as items and as events of a history, on every rank."""
        assert self.model is not None
        num_items = self.data.dataset.num_items
        mine = np.arange(rank(), num_items, world_size())
        # The same number of chunks on every rank: under ZeRO-3 each call is a collective.
        share = -(-num_items // world_size())
        padded = np.resize(mine, share) if len(mine) else np.zeros(share, np.int64)
        parts = []
        for start in range(0, share, CATALOGUE_CHUNK):
            batch = items.load(padded[start : start + CATALOGUE_CHUNK])
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.autocast():
                vectors = self.model.item_encoder(batch)
            heartbeat.beat()
            parts.append(torch.cat(self.model.encode_items(vectors, batch.rows_n), dim=1))
        both = gather_rows(torch.cat(parts), counts=[share] * world_size())
        # Rank r holds rows r, r + R, …: put them back in order.
        both = both.view(world_size(), share, -1).transpose(0, 1).flatten(0, 1)[:num_items]
        item_ND, event_ND = both.chunk(2, dim=1)
        return item_ND, event_ND

    def validation_step(self, batch: QueryBatch, batch_idx: int) -> None:
        """Rank every query's item among the whole catalogue."""
        assert self.model is not None
        with self.autocast():
            states_BSD = self.model.encode_histories(
                self._event_ND,
                history_BL=batch.history_BL,
                times_BL=batch.times_BL,
                users_BC=batch.users_BC,
            )
        length_B = (batch.history_BL >= 0).sum(1)
        user_BD = states_BSD[torch.arange(len(length_B), device=self.device), length_B]
        real_B = batch.targets_B >= 0
        if not bool(real_B.any()):
            return
        target_B = batch.targets_B[real_B]
        # An item may be chosen again: the target itself is never masked.
        masked_BM = batch.masked_BM[real_B]
        masked_BM = torch.where(masked_BM == target_B[:, None], -1, masked_BM)
        ranks_B = target_ranks(user_BD[real_B], self._item_ND, target_B, masked_BM)
        values = [torch.ones(len(ranks_B), device=self.device, dtype=torch.float64)]
        for k in CUTOFFS:
            values += [recall_at_k(ranks_B[:, None], k=k), ndcg_at_k(ranks_B[:, None], k=k)]
        value_BK = torch.stack([value.double() for value in values], dim=1)
        warm_B = self._warm_N[target_B]
        for number, chosen_B in enumerate((torch.ones_like(warm_B), warm_B, ~warm_B)):
            self._sums[number] += value_BK[chosen_B].sum(0)

    def on_validation_epoch_end(self) -> None:
        """Log means over all queries, warm items' and cold items' apart."""
        sums = sum_over_ranks(self._sums).cpu()
        for number, suffix in enumerate(("", "_warm", "_cold")):
            count, *totals = sums[number].tolist()
            self.log(f"val/queries{suffix}", count, sync_dist=True)
            for place, k in enumerate(CUTOFFS):
                recall, ndcg = (totals[2 * place + j] / max(1.0, count) for j in (0, 1))
                self.log(f"val/recall@{k}{suffix}", recall, prog_bar=(k == 20), sync_dist=True)
                self.log(f"val/ndcg@{k}{suffix}", ndcg, sync_dist=True)
        del self._item_ND, self._event_ND
