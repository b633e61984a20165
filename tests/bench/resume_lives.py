"""Lives of one training run: forked from a process that has imported everything, and killed.

Each rank is a fork that calls `pretrain.cli.fit` as `python -m pretrain fit` does. What it trains
on is noted as it happens, one line of JSON a batch in `seen-RANK.jsonl` of the run folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from data_prep.exit_codes import DONE, FAILED
from pretrain import checkpoints, cli, lightning_cli, run, steps, stop_flag
from pretrain.batch import Batch

IMPORTED = (deepspeed, lightning_cli)  # once, for every fork
POLL_S = 0.002


# ---------------------------------------------------------------------- in a rank
class Notes(pl.Callback):
    """Writes down every batch that was trained on."""

    def __init__(self, path: Path, *, life: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.life = path.open("a", buffering=1), life
        self.windows: dict[tuple[int, int], list[int]] = {}
        steps.draw_samples = self._drawn(steps.draw_samples)
        checkpoints.Checkpoints.save = self._timed(checkpoints.Checkpoints.save)

    def _drawn(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: object, epoch: int, step: int, **more: Any) -> object:  # noqa: ANN401
            self.windows[epoch, step] = more["batch"][more["part"]].tolist()
            return draw(*given, epoch=epoch, step=step, **more)

        return noted

    def _timed(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: object, **more: object) -> object:
            begin = time.monotonic()
            found = save(*given, **more)
            self.write(event="save", seconds=time.monotonic() - begin)
            return found

        return noted

    def write(self, **what: object) -> None:
        self.file.write(json.dumps({"life": self.life, "time": time.time(), **what}) + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(event="resumed", step=trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Tensor],
        batch: Batch,
        batch_idx: int,
    ) -> None:
        epoch = trainer.current_epoch
        windows = self.windows.pop((epoch, batch_idx))
        loss = float(outputs["loss"])
        self.write(event="batch", step=trainer.global_step, epoch=epoch, windows=windows, loss=loss)


def _live(args: Sequence[str], *, rank: int, ranks: int, port: int, life: int, dir: Path) -> None:
    """Never returns."""
    code = FAILED
    try:
        log = os.open(dir / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        rank_zero_only.rank = rank
        stop_flag.listen()
        notes = Notes(dir / f"seen-{rank}.jsonl", life=life)
        callbacks = run.RunConfig.callbacks
        run.RunConfig.callbacks = lambda self: [notes, *callbacks(self)]
        notes.write(event="start")
        cli.fit([*args, "--run.dir", str(dir)])
        code = DONE
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---------------------------------------------------------------------- outside
@dataclass
class Life:
    """Processes that run."""

    pids: list[int]
    codes: dict[int, int]

    def running(self) -> list[int]:
        """Those that have not ended."""
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return [pid for pid in self.pids if pid not in self.codes]

    def send(self, number: int, *, first: int | None = None, gap_s: float = 0.0) -> None:
        """A signal to every process, to one of them a moment before the others."""
        running = self.running()
        for pid in sorted(running, key=lambda pid: pid != first):
            os.kill(pid, number)
            time.sleep(gap_s if pid == first else 0)

    def wait(self, *, until: Callable[[], bool] = lambda: False, limit_s: float = 600) -> bool:
        """Whether it ended by itself; `until` may end the wait before."""
        end = time.monotonic() + limit_s
        while self.running():
            if until():
                return False
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a life did not end in {limit_s} s")
            if any(self.codes.values()):  # as torchrun and srun end the others
                self.send(signal.SIGKILL)
            time.sleep(POLL_S)
        return True

    def finish(self, code: int = DONE) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: rank 0 ended with another code, or a run that is done with an error.
        """
        self.wait()
        if self.codes[self.pids[0]] != code or (code == DONE and any(self.codes.values())):
            raise RuntimeError(f"a life ended with {self.codes}")


def start_life(args: Sequence[str], dir: Path, *, ranks: int) -> Life:
    """Start every rank; the files of the run folder are appended to."""
    dir.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    life = len(starts(dir))
    pids = []
    for rank in range(ranks):
        if (pid := os.fork()) == 0:
            _live(args, rank=rank, ranks=ranks, port=port, life=life, dir=dir)
        pids.append(pid)
    with (dir / "starts.jsonl").open("a") as file:
        file.write(json.dumps({"ranks": ranks, "time": time.time()}) + "\n")
    return Life(pids, {})


def starts(dir: Path) -> list[dict[str, Any]]:
    """Every life so far."""
    return read_lines(dir / "starts.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; the last may have been cut off by a kill."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


# ---------------------------------------------------------------------- what they saw
@dataclass(frozen=True)
class History:
    """What a run trained on in the end, without the steps that a kill undid."""

    windows: dict[int, Counter[int]]
    """By epoch: how often each window of events was read."""

    losses: dict[int, float]
    """By step: mean over the ranks."""

    steps_lost: list[int]
    """By killed life: steps it took that the next did not find."""

    first_step_s: list[float]
    """By life: from its start to the end of its first step."""

    save_s: list[float]
    """By save: how long training stood still."""


def history(dir: Path) -> History:
    """Put the notes of every life together."""
    lives = starts(dir)
    notes = [note for path in sorted(dir.glob("seen-*.jsonl")) for note in read_lines(path)]
    begins = [min((n["step"] for n in notes if n["life"] == life and n["event"] == "resumed"),
                  default=None) for life in range(len(lives))]  # fmt: skip
    windows: dict[int, Counter[int]] = {}
    losses: dict[int, list[float]] = {}
    lost, first = [], []
    for life, started in enumerate(lives):
        batches = [n for n in notes if n["life"] == life and n["event"] == "batch"]
        later = [begin for begin in begins[life + 1 :] if begin is not None]
        kept_until = min(later, default=max((n["step"] for n in batches), default=0))
        for note in (n for n in batches if n["step"] <= kept_until):
            windows.setdefault(note["epoch"], Counter()).update(note["windows"])
            losses.setdefault(note["step"], []).append(note["loss"])
        if batches:
            first.append(min(n["time"] for n in batches) - started["time"])
        if later and begins[life] is not None:
            reached = max((n["step"] for n in batches), default=begins[life])
            lost.append(max(0, reached - later[0]))
    return History(
        windows=windows,
        losses={step: float(np.mean(values)) for step, values in sorted(losses.items())},
        steps_lost=lost,
        first_step_s=first,
        save_s=[n["seconds"] for n in notes if n["event"] == "save"],
    )
