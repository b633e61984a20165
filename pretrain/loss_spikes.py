"""Steps whose loss stands far above those before it, as events of the run's log."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence

import pytorch_lightning as pl

from pretrain.collectives import sum_over_ranks, world_size
from pretrain.run_log import RunLog

log = logging.getLogger(__name__)

WINDOW, FEWEST = 200, 20
"""Steps that a loss is compared with, and how many there must be."""
LEAST_SPREAD = 1e-3
"""Of the median: losses that hardly move have no spikes of the last digit."""


def spread_above(loss: float, before: Sequence[float]) -> float:
    """How many median absolute deviations a loss lies above the median of those before it."""
    median = statistics.median(before)
    deviation = statistics.median(abs(one - median) for one in before)
    return (loss - median) / max(deviation, LEAST_SPREAD * abs(median), 1e-12)


class LossSpikes(pl.Callback):
    """Compares each step's loss, the mean over ranks, with the steps before it."""

    def __init__(self, run_log: RunLog, *, deviations: float) -> None:
        self.run_log, self.deviations = run_log, deviations
        self._before: deque[float] = deque(maxlen=WINDOW)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Write and warn; a loss that is not finite has a policy of its own."""
        loss = float(sum_over_ranks(pl_module.step_values["loss"])) / world_size()  # type: ignore[index]
        if not math.isfinite(loss):
            return
        if len(self._before) >= FEWEST and trainer.is_global_zero:
            above, median = spread_above(loss, self._before), statistics.median(self._before)
            if above > self.deviations:
                facts = {"epoch": trainer.current_epoch, "batch": batch_idx, "loss": loss}
                self.run_log.write(
                    "spike", step=trainer.global_step, **facts, median=median, deviations=above
                )
                log.warning(
                    "step %d: loss %.4g is %.0f median deviations above the median %.4g of the "
                    "%d steps before",
                    *(trainer.global_step, loss, above, median, len(self._before)),
                )
        self._before.append(loss)
