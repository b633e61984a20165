"""Ends a run that no longer gets on, after every rank has written where it hangs.

When one rank hangs, all others wait for it in a collective, for ever or until the process group
gives up. Each rank has a thread that looks at the time of its last finished batch; none needs
another, so all find out within a step's time of each other.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path

import pytorch_lightning as pl

from data_prep.exit_codes import HUNG
from pretrain import heartbeat
from pretrain.collectives import rank
from pretrain.life import LIFE_FILE
from pretrain.run_log import RunLog

HANG_FILE = "HANG"
STDERR = 2
GRACE_S = 30.0
"""How long a rank waits for the others to write their stacks: the first to leave ends all."""


def stacks_file(run_dir: Path, number: int) -> Path:
    """Where a rank leaves the stacks of its threads."""
    return run_dir / f"stacks-rank-{number}.txt"


class HangWatch(pl.Callback):
    """No batch for `minutes`: stacks, the file HANG, and an exit code of its own.

    The first step, which compiles and warms up, and saving have `heartbeat.SLOW` times as long.
    Nothing is saved: the run goes on from what was saved last.
    """

    def __init__(self, log: RunLog, *, minutes: float) -> None:
        self.run_log, self.run_dir, self.limit_s = log, log.path.parent, 60 * minutes
        self.grace_s = min(GRACE_S, self.limit_s)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._step = 0
        self._life: bytes | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin to watch; the process group is there."""
        if stage != "fit":
            return
        heartbeat.beat(heartbeat.SLOW)
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first step is slow."""
        self._step, self._life = trainer.global_step, self._read_life()
        heartbeat.beat(heartbeat.SLOW)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """A step is done."""
        self._step = trainer.global_step
        heartbeat.beat()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation begins; encoding the catalogue says itself how it gets on."""
        heartbeat.beat()

    def on_validation_batch_end(self, *args: object) -> None:
        """A batch of validation is done."""
        heartbeat.beat()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch no more."""
        self._watch_no_more()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Watch no more: the run ends by itself."""
        self._watch_no_more()

    def _watch_no_more(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._thread = None

    def _watch(self) -> None:
        while not self._stop.wait(min(5.0, self.limit_s / 10)):
            # Should a thread hang that holds the interpreter's lock, this one no longer runs, and
            # faulthandler's own ends the process, with stacks on stderr and exit code 1.
            _end_after(heartbeat.SLOW * self.limit_s)
            if heartbeat.is_overdue(self.limit_s):
                self._abort()

    def _abort(self) -> None:
        # Should the disk hang, on which the stacks are to be written.
        _end_after(self.grace_s + 60)
        seconds, number = heartbeat.seconds_since(), rank()
        about = f"rank {number}: nothing was finished for {seconds:.0f} s after step {self._step}"
        # Not by logging, whose lock the thread that hangs may hold.
        os.write(STDERR, f"{about}; its threads:\n".encode())
        faulthandler.dump_traceback(file=STDERR)
        with stacks_file(self.run_dir, number).open("w") as file:
            print(about, file=file, flush=True)
            faulthandler.dump_traceback(file=file)
        # A life that another has followed has no say in how the run goes on.
        if self._life in (None, self._read_life()):
            (self.run_dir / HANG_FILE).write_text(f"step {self._step}\n")
        self.run_log.write("hang", step=self._step, seconds=round(seconds), stacks=file.name)
        time.sleep(self.grace_s)
        os._exit(HUNG)

    def _read_life(self) -> bytes | None:
        path = self.run_dir / LIFE_FILE
        return path.read_bytes() if path.is_file() else None


def _end_after(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
