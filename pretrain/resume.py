"""Going on exactly where a run stopped: its random numbers, its place in Lightning's loops.

The order of samples is a function of (seed, epoch, step), so the place in the data is the step
number. So are the random numbers of a step (dropout), which are drawn from a generator that starts
anew at every batch; nothing random is saved.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from pretrain.checkpoint_files import Manifest
from pretrain.collectives import rank

SEED_VARIABLE = "PL_GLOBAL_SEED"
"""Where Lightning keeps `seed_everything`."""


def seed_step(step: int) -> None:
    """Start every generator anew by (`seed_everything`, batch number of the run, rank).

    What ranks draw differs, so dropout on another number of ranks is another draw.
    """
    words = [int(os.environ.get(SEED_VARIABLE, "0")), step, rank()]
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def go_on_after_batch(loops: dict[str, Any]) -> int:
    """Bring the state of Lightning's loops, saved at a batch end, to where the next batch begins.

    Lightning counts a batch as completed only after its hooks, and takes a checkpoint of an epoch's
    last batch for one in the middle of the epoch, whose first batch it would train on again. A run
    that max_steps or max_time ended has counted its last epoch as a whole one.

    Args:
        loops: the checkpoint's `loops/fit_loop`, changed in place.

    Returns:
        The batch of the epoch to go on with.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    for counts in batches["current"], batches["total"]:
        counts["completed"] = counts["processed"]
    if not batches["is_last_batch"]:
        for counts in epochs["current"], epochs["total"]:
            counts["processed"] = counts["completed"] = counts["ready"] - 1
        return int(batches["current"]["completed"])
    for counts in epochs["current"], epochs["total"]:
        counts["processed"] = counts["completed"] = counts["ready"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    return 0


def align_logged_step(trainer: pl.Trainer) -> None:
    """Log the next step under its number; after a resume Lightning's own count is off by one."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def after_fit_loop(trainer: pl.Trainer, then: Callable[[], None]) -> None:
    """Do something before the trainer takes all down, also where there was nothing to train."""
    run = trainer.fit_loop.run

    def run_then() -> None:
        run()
        then()

    trainer.fit_loop.run = run_then  # type: ignore[method-assign]


def validation_follows(trainer: pl.Trainer, *, epoch: int, batches: int, epoch_done: bool) -> bool:
    """Whether the trainer validates after this batch; a time interval is not looked at.

    Args:
        trainer: it has set up its data.
        epoch: from 0.
        batches: done in that epoch.
        epoch_done: whether that are all.
    """
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (epoch + 1) % every):
        return False
    if interval is None or interval == float("inf"):
        return interval is not None and epoch_done
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if every is None else batches
    return done % int(interval) == 0


def validate_again(trainer: pl.Trainer, manifest: Manifest) -> None:
    """Run the validation that the run was stopped in or before, if one was due."""
    due = validation_follows(
        trainer, epoch=manifest.epoch, batches=manifest.batches, epoch_done=manifest.epoch_done
    )
    if due:
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True
