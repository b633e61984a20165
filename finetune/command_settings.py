"""What the commands on finished runs are told. No torch, as `--help` must not wait for it."""

from dataclasses import dataclass
from pathlib import Path

from finetune.content_settings import check_setting as check


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Score new impressions with a finished run."""

    run_dir: Path
    """Run folder written by `fit`, or one of a ladder's."""

    impressions: Path
    """Parquet with user_id, item_id, time (milliseconds or a timestamp), and the context features
    with the types that they had in the raw table."""

    out: Path
    """Parquet to write: user_id, item_id, time, score; score_NAME of further tasks or arms."""

    dataset_dir: Path | None = None
    """Dataset folder that knows the items and histories; null: the one the run was trained on."""

    embeddings_dir: Path | None = None
    """Embeddings of that dataset; null: those the run was trained on."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write metrics.json and report.html again from a ladder's finished runs."""

    run_dir: Path
    """A ladder's folder, of which only runs with the settings in its config.yaml count, or a single
    run's."""

    pretrain_metrics: Path | None = None
    """metrics.csv of the pre-training run, for its learning curves."""

    num_resamples: int = 300
    """Bootstrap resamples of the users behind every interval."""


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Estimate what a finished run's ranker would have earned on a log with propensities."""

    run_dir: Path
    """Run folder written by `fit`, on the rung none."""

    task: str | None = None
    """Label that is the reward; null: the run's first one."""

    temperatures: tuple[float, ...] = (0.0, 1.0)
    """The ranker as policies: softmax of its log odds over each of these; 0 takes the best item."""

    max_weight: float = 10.0
    """Largest weight of the clipped estimates."""

    dataset_dir: Path | None = None
    """Dataset folder whose test split is the log; null: the one the run was trained on."""

    out: Path | None = None
    """JSON to write; null: off_policy.json in the run folder."""

    def __post_init__(self) -> None:
        ok = len(self.temperatures) > 0 and all(one >= 0 for one in self.temperatures)
        check(ok, "temperatures", self.temperatures, "some, each 0 or more")
        check(self.max_weight >= 1, "max_weight", self.max_weight, "at least 1")
