"""Daily training: learn day t, test on day t + 1, and grow (progressive validation).

Every impression from the second part of the log on is predicted before it is learnt, so that all
days count; Blum et al. 1999 (Beating the hold-out). No figure chooses anything.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch

from data_prep.dataset import Dataset, open_dataset
from data_prep.records import SPLITS
from finetune import run_folder
from finetune.batches import CtrTable
from finetune.daily_settings import DailyConfig, DailyMode
from finetune.data import CtrData
from finetune.fit import quiet_lightning
from finetune.model import CtrModel
from finetune.module import CtrModule
from finetune.objective import Objective
from finetune.splits import read_split
from finetune.task_metrics import all_figures
from finetune.tasks import Task, learn_tasks
from finetune.warm_start import grown_vocabulary, take_over_weights

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000


@dataclass
class Trained:
    """A model and the vocabulary it reads by."""

    data: CtrData
    tasks: list[Task]
    model: CtrModel
    seconds: float
    new_values: int


def daily(config: DailyConfig) -> dict[str, Any]:
    """Run every mode over all days; writes and returns metrics.json's content."""
    from finetune.report_daily import write_report

    quiet_lightning()
    dataset = open_dataset(config.dataset_dir)
    days = by_day(dataset, day_starts_at=config.day_starts_at)
    if len(days) <= config.first_days:
        raise ValueError(
            f"{config.dataset_dir}: found {len(days)} days of impressions, expected more than "
            f"first_days, {config.first_days}: one at least to test on; lower it"
        )
    names = list(days)
    start = names[: config.first_days]
    first = train_new(config, dataset, pa.concat_tables([days[name] for name in start]))
    models: dict[DailyMode, Trained] = dict.fromkeys(config.modes, first)
    rows: list[dict[str, Any]] = []
    for place in range(config.first_days, len(names)):
        day = days[names[place]]
        for mode in config.modes:
            trained = models[mode]
            figures = test(trained, day)
            rows.append(
                {
                    "day": names[place],
                    "mode": mode,
                    "impressions": day.num_rows,
                    "train_seconds": round(trained.seconds, 2),
                    "new_values": trained.new_values,
                    **figures,
                }
            )
            logger.info("%s, %s: %s", names[place], mode, figures)
        if place + 1 == len(names):
            break
        known = pa.concat_tables([days[name] for name in names[: place + 1]])
        for mode in config.modes:
            if mode == "incremental":
                models[mode] = train_on(config, dataset, day, known=known, older=models[mode])
            elif mode == "retrained":
                models[mode] = train_new(config, dataset, known)
    found = {
        "dataset": dataset.manifest.name,
        "first_days": start,
        "head": config.head.name,
        "seed": config.seed,
        "days": rows,
        "mean": means(rows, config.modes),
    }
    run_folder.write_config(config, config.out_dir)
    run_folder.write_json(found, config.out_dir / run_folder.METRICS_FILE)
    write_report(found, config.out_dir)
    return found


def by_day(dataset: Dataset, *, day_starts_at: float) -> dict[str, pa.Table]:
    """Impressions of every day, of all splits, by the date on which the day begins."""
    table = pa.concat_tables([read_split(dataset, split) for split in SPLITS])
    shifted_N = table["time"].to_numpy() - round(day_starts_at * 3_600_000)
    day_N = shifted_N // DAY_MS
    return {
        str(np.datetime64(int(day), "D")): table.filter(pa.array(day_N == day))
        for day in np.unique(day_N)
    }


def train_new(config: DailyConfig, dataset: Dataset, known: pa.Table) -> Trained:
    """A model that learns all of some days, with their vocabulary."""
    data = CtrData.learn(dataset, config, train=known)
    data.train = data.encode(known)
    tasks = learn_tasks(config.tasks, data)
    torch.manual_seed(config.seed)
    rate = config.train.negative_rate
    model = CtrModel(config.head, data=data, content=None, tasks=tasks, negative_rate=rate)
    seconds = _train(config, data, model, epochs=config.train.max_epochs)
    return Trained(data, tasks, model, seconds, data.vocabulary.num_rows)


def train_on(
    config: DailyConfig, dataset: Dataset, day: pa.Table, *, known: pa.Table, older: Trained
) -> Trained:
    """Yesterday's model goes on with one more day; the optimiser starts anew.

    A value is new once all known days have it `min_count` times; scales of labels and of numbers
    stay those of the first days.
    """
    data = CtrData.learn(dataset, config, train=known)
    data.vocabulary = grown_vocabulary(older.data.vocabulary, data.vocabulary)
    data.train = data.encode(day)
    torch.manual_seed(config.seed)
    rate = config.train.negative_rate
    model = CtrModel(config.head, data=data, content=None, tasks=older.tasks, negative_rate=rate)
    new_values = take_over_weights(
        model,
        data.vocabulary,
        older.model.state_dict(),
        older=older.data.vocabulary,
        source="yesterday",
    )
    seconds = _train(config, data, model, epochs=config.day_epochs)
    return Trained(data, older.tasks, model, seconds, new_values)


def test(trained: Trained, day: pa.Table) -> dict[str, Any]:
    """Figures of every task on a day that the model has not seen."""
    impressions = trained.data.encode(day)
    table = CtrTable(impressions, trained.data.users, trained.data.items, None)
    figures = all_figures(trained.tasks, impressions, trained.model.predictions(table))
    more = {} if len(figures) == 1 else {"tasks": figures}
    return figures[trained.tasks[0].name] | more


def means(rows: list[dict[str, Any]], modes: tuple[DailyMode, ...]) -> dict[str, Any]:
    """Mean over the days of each mode's figures of the first task, and the whole training time."""
    found: dict[str, Any] = {}
    for mode in modes:
        own = [row for row in rows if row["mode"] == mode]
        names = [name for name, value in own[0].items() if isinstance(value, float)]
        found[mode] = {
            name: float(np.nanmean([row[name] for row in own]))
            for name in names
            if name != "train_seconds"
        }
        found[mode]["train_seconds"] = round(sum(_training_times(own, mode)), 2)
    return found


def _training_times(rows: list[dict[str, Any]], mode: DailyMode) -> list[float]:
    """Seconds of each training; a stale model was trained once, however often it is tested."""
    seconds = [float(row["train_seconds"]) for row in rows]
    return seconds[:1] if mode == "stale" else seconds


def _train(config: DailyConfig, data: CtrData, model: CtrModel, *, epochs: int) -> float:
    """Train in place for a fixed number of epochs; returns the seconds it took."""
    started = time.monotonic()
    fit_config = config.as_fit()
    table = CtrTable(data.train, data.users, data.items, None)
    objective = Objective(fit_config, data=data, tasks=model.tasks)
    module = CtrModule(
        model, config.train, objective=objective, train=table, valid=table, seed=config.seed
    )
    arguments: dict[str, Any] = {
        "accelerator": config.trainer.accelerator,
        "devices": config.trainer.devices,
        "strategy": config.trainer.strategy,
        "precision": config.trainer.precision,
        "gradient_clip_val": config.train.grad_clip_norm or None,
        "max_epochs": epochs,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "logger": False,
    }
    pl.Trainer(**(arguments | config.trainer.extra)).fit(module)
    return time.monotonic() - started
