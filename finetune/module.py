"""A CTR model under Lightning: two speeds of learning, and AUC every epoch.

Shapes: B impressions of a batch.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.batches import Batch, CtrTable, EvalBatches, LastBatch, TrainBatches
from finetune.metrics import auc, log_loss
from finetune.model import CtrModel
from finetune.objective import Objective, batch_label
from finetune.row_adam import RowSparseAdamW, average_over_ranks, clip_norm
from finetune.settings import TrainConfig
from finetune.task_metrics import all_figures, monitored

MONITOR = "val/monitor"
"""Of a run on the click alone its AUC; see `monitored`."""
Epoch = dict[str, float]

_TRAIN_AUC_ROWS = 1 << 20  # the latest impressions of an epoch that its training AUC is about


class CtrModule(pl.LightningModule):
    """Trains a `CtrModel`; `history` holds a row of figures an epoch."""

    def __init__(
        self,
        model: CtrModel,
        config: TrainConfig,
        *,
        objective: Objective,
        train: CtrTable,
        valid: CtrTable,
        seed: int,
        encoder_lr: float = 1.0e-4,
        last_batch: LastBatch = "dropped",
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.config = config
        self.encoder_lr = encoder_lr
        self.train_table = train
        self.valid_table = valid
        self.seed = seed
        self.last_batch: LastBatch = last_batch
        self.history: list[Epoch] = []
        self.autocasts = False
        """Whether bf16-mixed is seen to here, as DeepSpeed leaves it to the module."""
        self._train_logits: list[Tensor] = []
        self._train_labels: list[Tensor] = []
        self._clocks = self._spent = (0.0, 0.0)
        self._valid_outputs: list[Tensor] = []
        model.fields.sums_squares = config.id_l2 > 0
        table = model.fields.table
        table.sparse_gradient = config.id_optimizer == "sparse"
        if table.sparse_gradient:
            of_table = {id(one) for one in table.parameters()}
            self._ddp_params_and_buffers_to_ignore = [
                name for name, one in self.named_parameters() if id(one) in of_table
            ]

    def train_dataloader(self) -> TrainBatches:
        """This rank's batches; the order follows from seed and epoch."""
        return TrainBatches(
            self.train_table,
            batch_size=self.config.batch_size,
            seed=self.seed,
            epoch=lambda: self.current_epoch,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            negative_rate=self.config.negative_rate,
            last_batch=self.last_batch,
        )

    def val_dataloader(self) -> EvalBatches:
        """The whole validation split, on every rank."""
        return EvalBatches(self.valid_table)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move every tensor of a batch."""
        return batch if device.type == "cpu" else batch.to(device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with ids, dense and content parts, and a tuned encoder at speeds of their own.

        The tables have no weight decay: Adam would shrink the rows of rare ids at full speed,
        whatever the coefficient. `id_l2` penalises the rows a batch touches instead.
        """
        ids, encoder = self.model.fields.id_tables(), self.model.fields.encoder_parameters()
        apart = {id(one) for one in [*self.model.fields.table.parameters(), *ids, *encoder]}
        dense = [p for p in self.model.parameters() if p.requires_grad and id(p) not in apart]
        decay = self.config.weight_decay
        groups = [
            {"params": ids, "lr": self.config.id_lr, "weight_decay": 0.0},
            {"params": dense, "lr": self.config.lr, "weight_decay": decay},
        ]
        if encoder:
            groups.append({"params": encoder, "lr": self.encoder_lr, "weight_decay": decay})
        groups += self.objective.parameter_groups(self.config)
        return RowSparseAdamW(groups)

    def on_after_backward(self) -> None:
        """Average the table's sparse gradient over the ranks: DDP is told to leave it out."""
        table = self.model.fields.table
        if table.sparse_gradient and self.trainer.world_size > 1:
            for one in table.tables:
                if one.grad is not None:
                    one.grad = average_over_ranks(one.grad)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm over dense and sparse gradients together, which Lightning's cannot."""
        if not gradient_clip_val:
            return
        if self.model.fields.table.sparse_gradient and gradient_clip_algorithm in (None, "norm"):
            parameters = (one for group in optimizer.param_groups for one in group["params"])
            clip_norm(parameters, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        """Start the clocks; freeze the embedding tables after their epochs, or reset them."""
        self._clocks = (time.perf_counter(), time.process_time())
        optimizer = self.trainer.optimizers[0]
        limit = self.config.id_epochs
        if limit is not None and self.current_epoch >= limit:
            optimizer.param_groups[0]["lr"] = 0.0
        elif self.config.id_reset == "each_epoch" and self.current_epoch > 0:
            # Every rank draws the same, whatever its data has drawn so far.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000 + self.current_epoch)
                self.model.fields.reset_ids()
            for table in optimizer.param_groups[0]["params"]:
                optimizer.state.pop(table, None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's loss plus the penalties of the ids that were read and of content."""
        batch = self._drop_ids(batch)
        with self._autocast():
            step = self.objective(self.model, batch)
        first = self.model.tasks[0]
        if first.is_binary and not self.model.has_arms:
            self._train_logits.append(step.scored.logit_B.detach())
            self._train_labels.append(batch_label(batch, first.name))
            if len(self._train_logits) * len(batch.label_B) > _TRAIN_AUC_ROWS:
                del self._train_logits[0], self._train_labels[0]
        self.log("train/loss", step.loss, on_step=True, on_epoch=False)
        for name, value in step.task_losses.items():
            self.log(f"train/{name}/loss", value, on_step=True, on_epoch=False)
        loss: Tensor = step.loss
        if self.config.id_l2 > 0:
            loss = loss + self.config.id_l2 * step.scored.id_square_sum / len(batch.label_B)
        if self.config.content_l2 > 0:
            squares = step.scored.content_square_sum
            loss = loss + self.config.content_l2 * squares / len(batch.label_B)
        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.autocasts:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def on_validation_start(self) -> None:
        """Stop the clocks: validation has its own time."""
        self._spent = (
            time.perf_counter() - self._clocks[0],
            time.process_time() - self._clocks[1],
        )

    def _speed(self) -> Epoch:
        """What an impression of this epoch has cost this process."""
        num = self.trainer.num_training_batches * self.config.batch_size / self.trainer.world_size
        wall, cpu = self._spent
        return {
            "train/impressions_per_second": num / wall,
            "train/cpu_us_per_impression": cpu / num * 1e6,
        }

    def _drop_ids(self, batch: Batch) -> Batch:
        """Replace some user and item ids by the unknown id, as for new users and items."""
        rate = self.config.id_dropout
        if rate == 0:
            return batch
        ids_BF = batch.ids_BF.clone()
        for column, unknown in self.model.fields.id_columns:
            dropped_B = torch.rand(len(ids_BF), device=ids_BF.device) < rate
            ids_BF[dropped_B, column] = unknown
        return Batch(**{**batch.__dict__, "ids_BF": ids_BF})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect scores; AUC needs all of them."""
        with self._autocast():
            self._valid_outputs.append(self.model(batch).output_BO)

    def on_validation_epoch_end(self) -> None:
        """Figures of training so far this epoch and of the validation split."""
        output_NO = torch.cat(self._valid_outputs).float().cpu()
        self._valid_outputs.clear()
        if self.trainer.sanity_checking:
            return
        row: Epoch = {"epoch": float(self.current_epoch + 1)}
        if self._train_logits:
            train_score = torch.sigmoid(torch.cat(self._train_logits).float()).cpu().numpy()
            train_label = torch.cat(self._train_labels).float().cpu().numpy()
            row["train/auc"] = auc(train_label, train_score)
            row["train/logloss"] = log_loss(train_label, train_score)
        row |= self._speed()
        tasks = self.model.tasks
        figures = all_figures(tasks, self.valid_table.impressions, self.model.read(output_NO))
        row |= {f"val/{name}": value for name, value in figures[tasks[0].name].items()}
        if len(figures) > 1:
            for task, values in figures.items():
                row |= {f"val/{task}/{name}": value for name, value in values.items()}
        row[MONITOR] = monitored(tasks, figures, self.config.monitor)
        self._train_logits.clear()
        self._train_labels.clear()
        self.history.append(row)
        self.log_dict(
            {
                key: torch.tensor(value, dtype=torch.float32)
                for key, value in row.items()
                if key.startswith("val/")
            },
            prog_bar=True,
        )
        if math.isnan(row[MONITOR]):
            raise ValueError(
                "validation AUC is not a number: the validation split has clicks only or none of "
                f"{self.config.monitor or [task.name for task in tasks]}; move the cut-offs and "
                "re-run python -m data_prep shard"
            )
