"""Stop at a batch end when asked to, save, and say in a file how the run ended.

Slurm sends USR1 before preemption and time limits. A handler that does more than set a flag hangs
or saves from the wrong process (see slurm/README.md), so the ranks agree at a batch end, all save,
and the batch script requeues by the file REQUEUE. DONE, not an exit code, is the sign of success.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pretrain import stop_flag
from pretrain.checkpoint_files import DamagedCheckpoint, read_manifest, step_folders
from pretrain.checkpoints import Checkpoints
from pretrain.collectives import sum_over_ranks

log = logging.getLogger(__name__)


class StopOnSignal(pl.Callback):
    """Turns SIGUSR1 and SIGTERM into a checkpoint and an orderly end."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        """Have them save when asked to stop."""
        self.checkpoints = checkpoints
        self.stopped = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen from the start; the last run's files say nothing about this one."""
        stop_flag.listen()
        if trainer.is_global_zero:
            for name in ("DONE", "REQUEUE", "HANG"):
                (Path(trainer.default_root_dir) / name).unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen again: Lightning has set handlers of its own."""
        stop_flag.listen()
        # Had its handler met a signal in between, it would end the run before anything is saved.
        trainer._signal_connector.received_sigterm = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own
        batch: Any,  # noqa: ANN401 - Lightning's own
        batch_idx: int,
    ) -> None:
        """Agree with the other ranks; save and stop.

        Raises:
            SaveFailed: the state could not be saved; REQUEUE is then not written, since the next
                life would take the same steps again and fail at the same place.
        """
        asked = torch.tensor(float(bool(stop_flag.received)), device=pl_module.device)
        if self.stopped or not sum_over_ranks(asked) or not self.checkpoints.can_save(trainer):
            return
        self.stopped = True
        self.checkpoints.save_now(trainer)
        trainer.limit_val_batches = 0  # the next life validates; there may not be the time for it
        log.warning("asked to stop: saved at step %d", trainer.global_step)
        trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write DONE or REQUEUE; a late signal must not fail a run that has finished.

        Raises:
            Superseded: another life of this run has begun, whose place it is to say.
        """
        stop_flag.ignore()
        stop_flag.received.clear()
        self.checkpoints.check_life(trainer)
        if trainer.is_global_zero:
            name = "REQUEUE" if self.stopped else "DONE"
            (Path(trainer.default_root_dir) / name).write_text(f"step {trainer.global_step}\n")


def was_stopped(trainer: pl.Trainer) -> bool:
    """Whether a run ended because it was asked to, with all saved."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(one, StopOnSignal) and one.stopped for one in callbacks)


def finished(trainer: pl.Trainer, checkpoints: Path) -> str | None:
    """Says that the run in the trainer's folder has ended and there is nothing to go on with.

    None where it has not, or where the trainer is to go on for longer.
    """
    newest = next(iter(step_folders(checkpoints)), None)
    if newest is None or not (Path(trainer.default_root_dir) / "DONE").is_file():
        return None
    try:
        manifest = read_manifest(newest)
    except DamagedCheckpoint:  # the run goes on from the one before
        return None
    epochs = manifest.epoch + manifest.epoch_done
    for name, limit, done in (
        ("max_steps", trainer.max_steps, manifest.step),
        ("max_epochs", trainer.max_epochs, epochs),
    ):
        if limit is not None and 0 <= limit <= done:
            return (
                f"already finished at step {manifest.step} (trainer.{name} {limit}), nothing is "
                f"trained; raise trainer.{name}, or choose another run.dir"
            )
    return None
