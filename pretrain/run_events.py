"""A callback that writes a run's beginnings, validations and ends into its log."""

from __future__ import annotations

import signal
import socket

import pytorch_lightning as pl

from data_prep.exit_codes import DONE, FAILED, NOT_FINITE, STOPPED, SUPERSEDED
from pretrain import stop_flag
from pretrain.life import Superseded
from pretrain.nonfinite import NotFiniteError
from pretrain.run_log import RunLog
from pretrain.run_record import commit_of_code, read_lives, versions
from pretrain.stop import was_stopped

CODES: dict[type[BaseException], int] = {NotFiniteError: NOT_FINITE, Superseded: SUPERSEDED}


class RunEvents(pl.Callback):
    """See `run_log.py` for what the events are."""

    def __init__(self, log: RunLog) -> None:
        self.run_log = log
        self._signals: list[int] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the start."""
        if stage != "fit":
            return
        if trainer.is_global_zero:
            run_dir = self.run_log.path.parent
            self.run_log.write(
                "start",
                life=len(read_lives(run_dir)),
                ranks=trainer.world_size,
                host=socket.gethostname(),
                commit=commit_of_code(),
                versions=versions(),
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where an earlier life is gone on from."""
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            self.run_log.write("resume", step=trainer.global_step, epoch=trainer.current_epoch)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Note a signal; each rank may have got one of its own."""
        if stop_flag.received and stop_flag.received != self._signals:
            self._signals = list(stop_flag.received)
            name = signal.Signals(self._signals[-1]).name
            self.run_log.write("signal", step=trainer.global_step, signal=name)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what validation found."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            figures = {name: float(value) for name, value in found if name.startswith("val/")}
            epoch = trainer.current_epoch
            self.run_log.write("validation", step=trainer.global_step, epoch=epoch, metrics=figures)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note a run that is done, or was stopped."""
        if trainer.is_global_zero:
            stopped = was_stopped(trainer)
            code = STOPPED if stopped else DONE
            status = "stopped" if stopped else "done"
            self.run_log.write("end", step=trainer.global_step, status=status, exit_code=code)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note a run that failed; on every rank, as it may be this one's own trouble."""
        self.run_log.write(
            "end",
            step=trainer.global_step,
            status="failed",
            exit_code=CODES.get(type(exception), FAILED),
            error=f"{type(exception).__name__}: {exception}"[:2000],
        )
