"""What happens at a step whose loss or gradient is not finite: it changes nothing, and is noted.

Every rank must decide alike, or the next collective hangs. They need not ask each other: a loss
that is not finite gets a gradient that is not finite either, which reaches every rank with the sum
of the gradients. Under ZeRO, DeepSpeed finds that in the norm of the whole gradient and takes no
step; elsewhere the norm is taken here, and without gradients AdamW leaves weights, moments, its
step count and weight decay as they are. The learning rate goes on by the schedule, as the position
in the data does.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.collectives import gather_objects
from pretrain.run_log import RunLog

Policy = Literal["stop", "skip"]


class NotFiniteError(RuntimeError):
    """Training was stopped at a loss or gradient that is not finite."""


def with_its_gradient(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, one whose gradient is not finite either."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss)


class NonFinite(pl.Callback):
    """Leaves such steps out; ends the run at the first, or where there are too many.

    It comes before callbacks that save: nothing of such a step is saved.
    """

    def __init__(self, log: RunLog, *, policy: Policy, most_in_a_row: int, most: int) -> None:
        self.run_log, self.policy = log, policy
        self.most_in_a_row, self.most = most_in_a_row, most
        self.total = self.in_a_row = 0
        self._engine: Any = None
        self._engine_skipped = 0
        self._norm: float | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out who takes the optimizer steps."""
        if hasattr(trainer.model, "skipped_steps"):  # DeepSpeed's engine
            self._engine = trainer.model
            self._engine_skipped = self._engine.skipped_steps
            # Off by default where parameters are bf16.
            self._engine.optimizer.check_grad_overflow = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Keep what the forward pass changes: the queue of past items, running means of norms."""
        if self.policy == "skip" and not self._buffers:
            self._buffers = [(one, one.detach().clone()) for one in pl_module.buffers()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Leave the optimizer without gradients where they are not finite."""
        if self._engine is not None:
            return
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        gradients = [one.grad for one in parameters if one.grad is not None]
        self._norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(self._norm):
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Note such a step; raise where it is one too many.

        Raises:
            NotFiniteError: on every rank.
        """
        norm = self._take_norm()
        if norm is None:  # gradients are still being accumulated
            return
        if math.isfinite(norm):
            self.in_a_row = 0
            self._buffers = []
            pl_module.log("train/gradient_norm", norm, batch_size=1)
            return
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        self._buffers = []
        self.total += 1
        self.in_a_row += 1
        pl_module.log("train/nonfinite_steps", float(self.total), batch_size=1)
        self._note(trainer, pl_module, batch_idx=batch_idx)

    def _take_norm(self) -> float | None:
        """Of the gradient of the step just taken; None where none was taken."""
        norm, self._norm = self._norm, None
        if self._engine is None:
            return norm
        if self._engine.skipped_steps > self._engine_skipped:
            self._engine_skipped = self._engine.skipped_steps
            return math.inf
        stepped = self._engine.was_step_applied()
        found = self._engine.get_global_grad_norm() if stepped else None
        return None if found is None else float(found)

    def _note(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, batch_idx: int) -> None:
        values: dict[str, Tensor] = pl_module.step_values  # type: ignore[assignment]
        of_ranks = gather_objects({name: float(value) for name, value in values.items()})
        losses = [one["loss"] for one in of_ranks]
        bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        parts = sorted({k for one in of_ranks for k, v in one.items() if not math.isfinite(v)})
        stops = (
            self.policy == "stop" or self.in_a_row > self.most_in_a_row or self.total > self.most
        )
        facts = {"epoch": trainer.current_epoch, "batch": batch_idx, "ranks": len(losses)}
        if trainer.is_global_zero:
            self.run_log.write(
                "nonfinite",
                step=trainer.global_step,
                action="stop" if stops else "skip",
                **facts,
                not_finite=parts or ["gradient"],
                not_finite_on_ranks=bad,
                losses=losses,
                total=self.total,
                in_a_row=self.in_a_row,
            )
        if not stops:
            return
        gather_objects(None)  # the first rank to leave ends the others, maybe before their lines
        what = ", ".join(parts) or "the gradient alone"
        raise NotFiniteError(
            f"step {trainer.global_step}, batch {batch_idx} of epoch {trainer.current_epoch}: not "
            f"finite: {what}{f' on ranks {bad}' if bad else ''}, {self.total} such steps in this "
            f"life, {self.in_a_row} in a row; the weights are as before it, and "
            f"{self.run_log.path} says more. Lower optim.lr, look at the batch, or set "
            "run.watch.nonfinite to skip"
        )
