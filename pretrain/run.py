"""The run folder: where checkpoints, logs and the resolved config of one training run go."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from data_prep.credentials import hide_credentials
from pretrain.checkpoint_choice import has_checkpoints
from pretrain.checkpoint_policy import KeepConfig
from pretrain.checkpoints import Checkpoints
from pretrain.health_monitor import HealthConfig, HealthMonitor
from pretrain.life import Life
from pretrain.run_record import RunRecord
from pretrain.stop import StopOnSignal
from pretrain.watch import WatchConfig

log = logging.getLogger(__name__)


class Curves(CSVLogger):
    """metrics.csv; rows that a full disk does not take are kept for the next time."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - Lightning's own
        """What writes; an earlier life's metrics.csv, which it would delete, is put aside."""
        path = Path(self.log_dir) / "metrics.csv"
        if self._experiment is None and path.exists():
            number = len(list(path.parent.glob("metrics-*.csv"))) + 1
            path.rename(path.with_name(f"metrics-{number}.csv"))
        return super().experiment

    def save(self) -> None:
        """Write what is new."""
        try:
            super().save()
        except OSError as error:
            log.error("%s: not written: %s", Path(self.log_dir) / "metrics.csv", error)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    dir: Path
    """Run folder: config.yaml, metrics.csv, events.jsonl, run.json, life.json, lives.json,
    warnings.log, checkpoints/, and DONE, REQUEUE or HANG. A run that finds checkpoints there goes
    on from the newest that is whole."""

    wandb: Literal["off", "offline", "online"] = "offline"
    """Weights & Biases: `offline` writes into the run folder without a word, and `wandb sync
    RUN_DIR/wandb/offline-run-*` uploads it later; `off` writes nothing."""

    project: str = "triptych"
    """Weights & Biases project."""

    monitor: str | None = "val/recall@20"
    """What the best checkpoint is chosen by, higher is better; null keeps only the last."""

    checkpoint_steps: int | None = None
    """Save every so many optimizer steps too; null saves before validation, after each epoch and at
    a stop only. A kill loses at most the steps since the last save."""

    keep: KeepConfig = field(default_factory=KeepConfig)
    """Which checkpoints are kept."""

    async_checkpoints: bool = False
    """Write checkpoints from a copy in memory while training goes on. Each process needs memory for
    what it saves, and a kill also loses the steps taken while a save was being written."""

    health: HealthConfig = field(default_factory=HealthConfig)
    """How the modalities share the space, measured while training."""

    watch: WatchConfig = field(default_factory=WatchConfig)
    """What ends a run that hangs or is no longer finite, and what it says of itself."""

    progress_bar: bool = True
    """Show a progress bar."""

    def loggers(self) -> list[Logger]:
        """metrics.csv, and Weights & Biases."""
        loggers: list[Logger] = [Curves(self.dir, name="", version="")]
        if self.wandb != "off":
            self.dir.mkdir(parents=True, exist_ok=True)  # else wandb writes to a temporary folder
            # Beside the GPU's name, wandb keeps the command line, with all that is in it.
            settings: dict[str, Any] = {"x_disable_meta": hide_credentials(sys.argv) != sys.argv}
            if self.wandb == "offline":
                settings["silent"] = True  # it has nothing to say but how to upload
            wandb = WandbLogger(
                project=self.project,
                save_dir=self.dir,
                offline=self.wandb == "offline",
                settings=settings,
            )
            wandb._wandb_init.pop("anonymous", None)  # Lightning's, of which wandb only warns
            loggers.append(wandb)
        return loggers

    def callbacks(self) -> list[Callback]:
        """Checkpoints, orderly stop, learning rate, progress bar."""
        checkpoints = Checkpoints(
            self.checkpoints,
            keep=self.keep,
            monitor=self.monitor,
            every_steps=self.checkpoint_steps,
            asynchronous=self.async_checkpoints,
            life=Life(self.dir),
        )
        callbacks: list[Callback] = [RunRecord(self.dir), *self.watch.callbacks(self.dir)]
        callbacks += [StopOnSignal(checkpoints), LearningRateMonitor(), checkpoints]
        if self.health.every_steps:
            callbacks.append(HealthMonitor(self.health))
        return [*callbacks, RichProgressBar()] if self.progress_bar else callbacks

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.dir / "checkpoints"

    def resume_from(self) -> Path | None:
        """The folder of checkpoints if this run is being continued; which one, all ranks choose.

        Raises:
            ValueError: they are of an earlier version.
        """
        return self.checkpoints if has_checkpoints(self.checkpoints) else None
