"""The run folder: where checkpoints, logs and the resolved config of one training run go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from pretrain.health_monitor import HealthConfig, HealthMonitor
from pretrain.run_record import RunRecord
from pretrain.stop import StopOnSignal

LAST = "last.ckpt"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    dir: Path
    """Run folder: config.yaml, metrics.csv, run.json, lives.json, warnings.log, checkpoints/, DONE
    or REQUEUE. A run that finds checkpoints/last.ckpt there goes on from it."""

    wandb: Literal["off", "offline", "online"] = "offline"
    """Weights & Biases: `offline` writes into the run folder, `wandb sync` uploads it later."""

    project: str = "triptych"
    """Weights & Biases project."""

    monitor: str | None = "val/recall@20"
    """What the best checkpoint is chosen by, higher is better; null keeps only the last."""

    checkpoint_steps: int | None = None
    """Save `last` every so many optimizer steps too; null saves after each epoch only."""

    health: HealthConfig = field(default_factory=HealthConfig)
    """How the modalities share the space, measured while training."""

    progress_bar: bool = True
    """Show a progress bar."""

    def loggers(self) -> list[Logger]:
        """metrics.csv, and Weights & Biases."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._keep_earlier_curves()
        loggers: list[Logger] = [CSVLogger(self.dir, name="", version="")]
        if self.wandb != "off":
            self.dir.mkdir(parents=True, exist_ok=True)  # else wandb writes to a temporary folder
            loggers.append(
                WandbLogger(
                    project=self.project, save_dir=self.dir, offline=self.wandb == "offline"
                )
            )
        return loggers

    def _keep_earlier_curves(self) -> None:
        """Put an earlier life's metrics.csv aside; the logger would delete it."""
        if (self.dir / "metrics.csv").exists():
            number = len(list(self.dir.glob("metrics-*.csv"))) + 1
            (self.dir / "metrics.csv").rename(self.dir / f"metrics-{number}.csv")

    def callbacks(self) -> list[Callback]:
        """Checkpoints, orderly stop, learning rate, progress bar."""
        folder = self.dir / "checkpoints"
        callbacks: list[Callback] = [StopOnSignal(folder / LAST), LearningRateMonitor()]
        callbacks.append(RunRecord(self.dir))
        if self.health.every_steps:
            callbacks.append(HealthMonitor(self.health))
        if self.monitor is not None:
            best = ModelCheckpoint(
                folder,
                filename="best-{step}",
                monitor=self.monitor,
                mode="max",
                auto_insert_metric_name=False,
            )
            callbacks.append(best)
        # Apart from the best: its own `save_last` writes only when the best is written.
        callbacks.append(self._last(folder, every_n_epochs=1, save_on_train_epoch_end=True))
        if self.checkpoint_steps is not None:
            callbacks.append(self._last(folder, every_n_train_steps=self.checkpoint_steps))
        return [*callbacks, RichProgressBar()] if self.progress_bar else callbacks

    @staticmethod
    def _last(folder: Path, **when: Any) -> ModelCheckpoint:  # noqa: ANN401 - Lightning's own
        name = LAST.removesuffix(".ckpt")
        return ModelCheckpoint(folder, filename=name, enable_version_counter=False, **when)

    def newest_checkpoint(self) -> Path | None:
        """`last` of this run, if it is being continued."""
        path = self.dir / "checkpoints" / LAST
        return path if path.exists() else None
