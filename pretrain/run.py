"""The run folder: where checkpoints, logs and the resolved config of one training run go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from pretrain.stop import StopOnSignal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    dir: Path
    """Run folder: config.yaml, metrics.csv, run.json, checkpoints/, DONE or REQUEUE. A run that
    finds checkpoints/last.ckpt there goes on from it."""

    wandb: Literal["off", "offline", "online"] = "offline"
    """Weights & Biases: `offline` writes into the run folder, `wandb sync` uploads it later."""

    project: str = "triptych"
    """Weights & Biases project."""

    monitor: str | None = "val/recall@20"
    """What the best checkpoint is chosen by, higher is better; null keeps only the last."""

    checkpoint_steps: int | None = None
    """Save `last` every so many optimizer steps too; null saves after validation only."""

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
        callbacks: list[Callback] = [
            StopOnSignal(),
            LearningRateMonitor(),
            ModelCheckpoint(
                folder,
                filename="best-{step}" if self.monitor else "newest-{step}",
                monitor=self.monitor,
                mode="max",
                save_last=True,
                auto_insert_metric_name=False,
            ),
        ]
        if self.checkpoint_steps is not None:
            callbacks.append(
                ModelCheckpoint(
                    folder,
                    filename="last",
                    every_n_train_steps=self.checkpoint_steps,
                    enable_version_counter=False,
                )
            )
        return [*callbacks, RichProgressBar()] if self.progress_bar else callbacks

    def newest_checkpoint(self) -> Path | None:
        """`last` of this run, if it is being continued."""
        folder = self.dir / "checkpoints"
        found = sorted(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None
