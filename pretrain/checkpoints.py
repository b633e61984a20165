"""The callback that saves, keeps and chooses the checkpoints of a run; files: checkpoint_files.py.

Every rank writes its own files into `step-N.LIFE.partial` and reads them again. When all have,
rank 0 adds the manifest and renames the folder, so that a kill at any moment leaves either a whole
checkpoint or none, and only then deletes older ones. A save that fails on any rank leaves nothing.
"""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from pretrain import heartbeat
from pretrain.checkpoint_choice import choose_checkpoint, delete_old, saved_in
from pretrain.checkpoint_files import (
    PARTIAL,
    Manifest,
    folder_of,
    put_in_place,
    read_manifest,
    remove_left_overs,
)
from pretrain.checkpoint_policy import (
    KeepConfig,
    Validation,
    read_validation,
    write_validation,
)
from pretrain.checkpoint_state import (
    Written,
    held_files,
    in_memory,
    layout_of,
    nothing_pending,
    read_from,
    write_files,
)
from pretrain.collectives import gather_objects, sum_over_ranks
from pretrain.life import Life, Superseded
from pretrain.resume import after_fit_loop, align_logged_step, validate_again, validation_follows
from pretrain.run_log import RunLog
from pretrain.run_record import versions

log = logging.getLogger(__name__)


class SaveFailed(RuntimeError):
    """The state of a run that ends could not be saved."""


@dataclass(frozen=True)
class Flight:
    """A save that is on its way."""

    folder: Path
    manifest: Manifest
    written: Future[Written]


class Checkpoints(pl.callbacks.Checkpoint):
    """Saves at an interval, after every epoch and before every validation."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: KeepConfig,
        monitor: str | None,
        every_steps: int | None,
        asynchronous: bool,
        life: Life,
    ) -> None:
        """Where, how often, and which stay.

        Args:
            folder: `run.dir/checkpoints`.
            keep: policy of deletion.
            monitor: metric of validation that the best are chosen by, higher is better.
            every_steps: interval in optimizer steps; None saves after epochs only.
            asynchronous: write from a copy in memory while training goes on.
            life: this start of the run; one that another has followed saves nothing.
        """
        self.life = life
        self.folder, self.keep, self.monitor = folder, keep, monitor
        self.every_steps, self.asynchronous = every_steps, asynchronous
        self.saved_step: int | None = None
        """Of the newest checkpoint, whole or on its way."""
        self._chosen: Path | None = None
        self._resumed: Manifest | None = None
        self._flight: Flight | None = None
        self._due = False
        self._step_before = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    # ------------------------------------------------------------------ start
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Clear up after a kill and choose what to go on from, the same on every rank.

        Raises:
            ValueError: every checkpoint is damaged, or they are of another strategy.
            Superseded: a later life of the same job has begun.
        """
        if stage != "fit":
            return
        layout = layout_of(trainer)
        self.life.begin()
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_left_overs(self.folder)
        trainer.strategy.barrier("checkpoints cleared")
        self._chosen = choose_checkpoint(self.folder, layout=layout)
        read_from(trainer, self._chosen)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The chosen one is being restored."""
        assert self._chosen is not None
        self._resumed = read_manifest(self._chosen)
        self.saved_step = self._resumed.step
        log.info("%s: going on from there", self._chosen)
        # A run whose last step is taken does not start to train.
        after_fit_loop(trainer, lambda: self._make_up(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make up for a validation that the last life did not finish."""
        self._make_up(trainer)

    def _make_up(self, trainer: pl.Trainer) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            note = read_validation(folder_of(self.folder, resumed.step))
            if gather_objects(note)[0] is None:
                validate_again(trainer, resumed)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the thread that writes."""
        self._writer.shutdown()

    # ------------------------------------------------------------------ when
    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ANN401 - Lightning's own
        batch_idx: int,
    ) -> None:
        """Remember how far the optimizer is."""
        self._step_before = trainer.global_step
        align_logged_step(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's own
        batch: Any,  # noqa: ANN401 - Lightning's own
        batch_idx: int,
    ) -> None:
        """Save where it is due; finish what is on its way."""
        stepped = trainer.global_step > self._step_before
        self._due |= trainer.is_last_batch or validation_follows(
            trainer,
            epoch=trainer.current_epoch,
            batches=batch_idx + 1,
            epoch_done=trainer.is_last_batch,
        )
        if stepped and self.every_steps is not None:
            self._due |= trainer.global_step % self.every_steps == 0
        if self._due and self.can_save(trainer):
            self.save(trainer)
        elif self._flight is not None:
            waiting = torch.tensor(float(not self._flight.written.done()), device=pl_module.device)
            if not sum_over_ranks(waiting):
                self._finish(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics beside the checkpoint of this step."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.monitor is not None and self.monitor not in metrics:
            raise ValueError(
                f"run.monitor: validation gave no {self.monitor!r}, there are {', '.join(metrics)}"
            )
        if trainer.is_global_zero and self.saved_step == trainer.global_step:
            try:
                note = Validation(monitor=self.monitor, metrics=metrics)
                write_validation(folder_of(self.folder, trainer.global_step), note)
            except OSError as error:
                log.error("validation of step %d is not noted: %s", trainer.global_step, error)
            delete_old(self.folder, self.keep)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last step saved.

        Raises:
            SaveFailed: it could not be saved.
        """
        if self.saved_step != trainer.global_step:
            self.save_now(trainer)
        elif self._flight is not None and (error := self._finish(trainer)):
            raise SaveFailed(error)

    # ------------------------------------------------------------------ saving
    def can_save(self, trainer: pl.Trainer) -> bool:
        """Whether no gradients wait for an optimizer step, which a checkpoint would lose."""
        return nothing_pending(trainer, stepped=trainer.global_step > self._step_before)

    def save_now(self, trainer: pl.Trainer) -> None:
        """Save this step and wait for it; a collective.

        Raises:
            SaveFailed: it could not be saved; the checkpoints of before are as they were.
        """
        if self.saved_step == trainer.global_step and self._flight is None:
            return
        if error := self.save(trainer, wait=True):
            raise SaveFailed(error)

    def save(self, trainer: pl.Trainer, *, wait: bool = False) -> str | None:
        """Save this step, or begin to; a collective. What went wrong, if it is known by now."""
        self._due = False
        if self._flight is not None:
            error = self._finish(trainer)
            if self.saved_step == trainer.global_step:
                return error
        step, loop = trainer.global_step, trainer.fit_loop
        heartbeat.beat(heartbeat.SLOW)
        files = held_files(trainer)
        if self.asynchronous and not wait:
            files = in_memory(files)
        manifest = Manifest(
            step=step,
            epoch=loop.epoch_progress.current.ready - 1,
            batches=loop.epoch_loop.batch_progress.current.ready,
            epoch_done=trainer.is_last_batch,
            ranks=trainer.world_size,
            layout=layout_of(trainer),
            written=time.time(),
            versions=versions(),
            files={},
        )
        partial = folder_of(self.folder, step)
        # Of this life alone: one that was left over may be writing the same step.
        partial = partial.with_name(f"{partial.name}.{self.life.name}{PARTIAL}")
        written = self._writer.submit(write_files, files, partial)
        self._flight = Flight(partial, manifest, written)
        self.saved_step = step
        return self._finish(trainer) if wait or not self.asynchronous else None

    def _finish(self, trainer: pl.Trainer) -> str | None:
        """Wait for the save on its way and put it in place; a collective. What went wrong.

        Raises:
            Superseded: another life of this run has begun.
        """
        assert self._flight is not None
        flight, self._flight = self._flight, None
        everyone: list[Written] = gather_objects(flight.written.result())
        error = next((one.error for one in everyone if one.error), None)
        try:
            self.check_life(trainer)
        except Superseded:
            shutil.rmtree(flight.folder, ignore_errors=True)
            raise
        if error is None and trainer.is_global_zero:
            sums = {name: found for one in everyone for name, found in one.sums.items()}
            try:
                put_in_place(flight.folder, replace(flight.manifest, files=sums))
            except OSError as failure:
                error = str(failure)
        error = gather_objects(error)[0]
        if error is not None:
            self.saved_step = None
            error = self._explain(flight, error)
            if trainer.is_global_zero:
                shutil.rmtree(flight.folder, ignore_errors=True)
                log.error("%s", error)
        elif trainer.is_global_zero:
            delete_old(self.folder, self.keep)
        if trainer.is_global_zero:
            self._note(flight.manifest, error)
        return error

    def check_life(self, trainer: pl.Trainer) -> None:
        """Whether the folder is still this life's; a collective.

        Raises:
            Superseded: it is not, on every rank.
        """
        fault = None
        if trainer.is_global_zero:
            try:
                self.life.check()
            except Superseded as error:
                fault = str(error)
        if fault := gather_objects(fault)[0]:
            raise Superseded(fault)

    def _note(self, manifest: Manifest, error: str | None) -> None:
        """Write into the run's log how a save ended."""
        seconds = round(time.time() - manifest.written, 3)
        run_log = RunLog(self.folder.parent)
        if error is None:
            name = folder_of(self.folder, manifest.step).name
            run_log.write("save", step=manifest.step, file=name, seconds=seconds)
        else:
            run_log.write("save_failed", step=manifest.step, error=error, seconds=seconds)

    def _explain(self, flight: Flight, error: str) -> str:
        kept = saved_in(self.folder)
        newest = f"step-{kept[0].step} is the newest checkpoint" if kept else "there is none yet"
        return f"{self.folder}: step {flight.manifest.step} is NOT SAVED, {newest}: {error}"
