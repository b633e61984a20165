"""Rungs × seeds of one head in one process, and the report over them."""

import dataclasses
import logging
from pathlib import Path

import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from data_prep.dataset import open_dataset
from finetune import run_folder
from finetune.compare import Comparison, Spread
from finetune.content import open_content
from finetune.fit import Inputs, fit
from finetune.settings import FitConfig, LadderConfig, TrainerConfig
from finetune.splits import check_splits
from finetune.task_settings import CLICK
from finetune.tasks import known_labels
from finetune.training import is_first_rank

logger = logging.getLogger(__name__)

RUNS_DIR = "ladder"
USUAL_RUNGS = ("none", "noise", "raw", "aligned")


def ladder(config: LadderConfig, *, console: Console) -> Comparison | None:
    """Climb every rung with every seed, keep what is finished, write the report.

    Of several ranks that climb together rank 0 writes; the others return None after the last run.
    """
    from finetune.report import write_report

    config = dataclasses.replace(config, rungs=rungs_of(config))
    configs = run_configs(config)
    waiting = [one for one in configs if not run_folder.is_finished(one)]
    if len(waiting) < len(configs):
        console.print(f"{len(configs) - len(waiting)} of {len(configs)} runs are kept")
    if is_first_rank():
        run_folder.write_config(config, config.out_dir)
    if waiting:
        _check(waiting)
        _run(waiting, console=console)
    if not is_first_rank():
        return None
    comparison = write_report(
        config.out_dir,
        run_dirs=[one.out_dir for one in configs],
        pretrain_metrics=config.pretrain_metrics,
        num_resamples=config.num_resamples,
    )
    console.print(table(comparison))
    return comparison


def rungs_of(config: LadderConfig) -> tuple[str, ...]:
    """The rungs as given; else the usual ones, without `raw` where there are no such vectors."""
    if config.rungs is not None:
        return config.rungs
    folder = config.embeddings_dir
    if folder is not None and (folder / "items.parquet").is_file():
        if "raw" not in pq.read_schema(folder / "items.parquet").names:
            logger.warning(
                "%s: a release on ids alone has no raw, so that rung is left out", folder
            )
            return tuple(rung for rung in USUAL_RUNGS if rung != "raw")
    return USUAL_RUNGS


def run_configs(config: LadderConfig) -> list[FitConfig]:
    """Settings of every run, rung by rung."""
    shared = {
        name.name: getattr(config, name.name)
        for name in dataclasses.fields(FitConfig)
        if hasattr(config, name.name) and name.name not in ("out_dir", "trainer")
    }
    trainer = TrainerConfig(**{**dataclasses.asdict(config.trainer), "progress": "none"})
    return [
        FitConfig(
            **shared, trainer=trainer, rung=rung, seed=seed, out_dir=run_dir(config, rung, seed)
        )
        for rung in rungs_of(config)
        for seed in config.seeds
    ]


def run_dir(config: LadderConfig, rung: str, seed: int) -> Path:
    """Folder of one run."""
    return config.out_dir / RUNS_DIR / config.head.name / rung / f"seed-{seed}"


def _check(configs: list[FitConfig]) -> None:
    """Open what every rung needs, so that the last one does not fail after an hour."""
    dataset = open_dataset(configs[0].dataset_dir)
    check_splits(dataset)
    first = next(iter(configs[0].tasks), CLICK)
    if known_labels(dataset).get(first) == "numeric":
        raise ValueError(
            f"tasks: found {first!r} first, which is a number, expected a binary label, as rungs "
            "are compared by AUC; name one first, or run python -m finetune fit"
        )
    for config in {one.rung: one for one in configs}.values():
        open_content(config.rung, config, dataset=dataset, seed=config.seed)


def _run(configs: list[FitConfig], *, console: Console) -> None:
    inputs = Inputs.open(configs[0])
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
        console=console,
    )
    with progress:
        task = progress.add_task("ladder", total=len(configs), last="")
        for config in configs:
            name = f"{config.head.name} {config.rung} seed {config.seed}"
            progress.update(task, description=name)
            record = fit(config, inputs)
            auc = record["test"]["auc"]
            progress.update(task, advance=1, last=f"{name}: {config.judged_on} AUC {auc:.4f}")


def table(comparison: Comparison) -> Table:
    """The ladder as the command line prints it."""
    best = comparison.best_reachable["auc"]
    reachable = "" if best is None else f"; best reachable AUC {best:.4f}"
    drawn = Table(
        title=f"Content ladder: mean ± std over seeds{reachable}",
        caption="Δ: difference to none with its 95 % interval over users, paired",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    drawn.add_column("rung", style="bold", no_wrap=True)
    for heading in ("AUC", "Δ AUC", "AUC cold", "Δ AUC cold", "GAUC", "log loss"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for rung in comparison.rungs:
        spreads = comparison.spreads[rung]
        drawn.add_row(
            rung,
            _two_lines(spreads["auc"]),
            _gain(comparison, rung, metric="auc"),
            _two_lines(spreads["auc_cold"]),
            _gain(comparison, rung, metric="auc_cold"),
            _two_lines(spreads["gauc"]),
            _two_lines(spreads["logloss"]),
        )
    return drawn


def _two_lines(spread: Spread) -> str:
    """Mean over spread, so that the table fits a terminal of 80 columns."""
    return f"{spread.mean:.4f}\n±{spread.std:.4f}"


def _gain(comparison: Comparison, rung: str, *, metric: str) -> str:
    one = comparison.differences.get(f"{rung}-none", {}).get(metric)
    return f"{one.value:+.4f}\n{one.low:+.3f}…{one.high:+.3f}" if one else ""
