"""Settings of daily training. No torch, as `--help` must not wait for it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from finetune.content_settings import check_setting as check
from finetune.settings import FitConfig, HeadConfig, InputConfig, TrainConfig, TrainerConfig

DailyMode = Literal["incremental", "retrained", "stale"]


@dataclass(frozen=True, kw_only=True)
class DailyConfig(InputConfig):
    """Train day by day and test each model on the day after, before it learns from it.

    Models of ids alone, the rung none: a release would have seen the days to come. The impressions
    of all days are held in memory; `memory_mb` bounds what they are encoded to.
    """

    out_dir: Path
    """Folder of metrics.json, written anew after every day, and report.html. The same command
    again goes on after the last day that was learnt (state/), unless settings or data differ."""

    modes: tuple[DailyMode, ...] = ("incremental", "retrained", "stale")
    """incremental: yesterday's model learns the new day, its vocabulary grown. retrained: a new
    model learns all days so far. stale: the first model, never again trained."""

    first_days: int = 3
    """Days that every first model learns."""

    day_epochs: int = 1
    """Passes over a new day of the incremental model, each over all of its impressions: its batches
    are as near to train.batch_size as they can be alike. The others' are train.max_epochs, as no
    later day may say when to stop."""

    day_starts_at: float = 0.0
    """Hour (UTC) at which a day begins."""

    seed: int = 0
    """Seeds the initial weights and the order of impressions."""

    head: HeadConfig = field(default_factory=HeadConfig)
    """The network."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(max_epochs=2))
    """The optimisation."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = len(self.modes) > 0 and len(set(self.modes)) == len(self.modes)
        check(ok, "modes", self.modes, "different modes, at least one")
        for key in ("first_days", "day_epochs"):
            check(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("embeddings_dir", "released"):
            expected = "null, as daily trains on ids alone (the rung none)"
            check(getattr(self, key) is None, key, getattr(self, key), expected)
        check(0 <= self.day_starts_at < 24, "day_starts_at", self.day_starts_at, "0 to below 24")

    def as_fit(self) -> FitConfig:
        """What one model is trained by."""
        inputs = {one.name: getattr(self, one.name) for one in fields(InputConfig)}
        return FitConfig(
            **inputs,
            out_dir=self.out_dir,
            seed=self.seed,
            head=self.head,
            train=self.train,
            trainer=self.trainer,
        )
