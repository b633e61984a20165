"""Daily training: learn day t, test on day t + 1, and grow (progressive validation).

Every impression from the second part of the log on is predicted before it is learnt, so that all
days count; Blum et al. 1999 (Beating the hold-out). No figure chooses anything.

A day is learnt whatever its labels are: leaving out the days without a click would make the rates
that are predicted too high. Only what cannot be trained on at all is passed over. Both are logged,
and rows of the report.
"""

import dataclasses
import logging
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch

from data_prep.dataset import Dataset, open_dataset
from data_prep.records import SPLITS
from finetune import run_folder
from finetune.batches import CtrTable, LastBatch, num_training_rows
from finetune.daily_settings import DailyConfig, DailyMode
from finetune.daily_state import Progress, ProgressFolder, Trained
from finetune.data import CtrData
from finetune.fit import quiet_lightning
from finetune.model import CtrModel
from finetune.module import CtrModule
from finetune.objective import Objective, check_outcomes, constant_labels
from finetune.splits import read_split
from finetune.task_metrics import all_figures, has_both_arms
from finetune.tasks import learn_tasks
from finetune.training import is_first_rank, train, trainer_of
from finetune.warm_start import grown_vocabulary, take_over_weights

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000
_NOT_FIGURES = {"day", "mode", "impressions", "train_seconds", "new_values", "tasks"}


def daily(config: DailyConfig) -> dict[str, Any]:
    """Run every mode over all days; writes and returns metrics.json's content."""
    from finetune.report_daily import write_report

    quiet_lightning()
    dataset = open_dataset(config.dataset_dir)
    days = by_day(dataset, day_starts_at=config.day_starts_at)
    progress_folder = ProgressFolder(config, dataset)
    if len(days) <= config.first_days:
        raise ValueError(
            f"{config.dataset_dir}: found {len(days)} days of impressions, expected more than "
            f"first_days, {config.first_days}: one at least to test on; lower it"
        )
    names = list(days)
    start = names[: config.first_days]
    progress = progress_folder.restore()
    if progress is None:
        first = train_new(config, dataset, pa.concat_tables([days[name] for name in start]))
        progress = Progress(dict.fromkeys(config.modes, first), place=config.first_days - 1)
    if is_first_rank():
        run_folder.write_config(config, config.out_dir)
    for place in range(progress.place + 1, len(names)):
        if is_first_rank():
            progress_folder.save(progress)
        day = days[names[place]]
        for mode in config.modes:
            trained = progress.models[mode]
            figures = test(trained, day)
            progress.rows.append(
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
        found = {
            "dataset": dataset.manifest.name,
            "first_days": start,
            "head": config.head.name,
            "seed": config.seed,
            "days": progress.rows,
            "odd_days": progress.odd_days,
            "days_to_come": len(names) - place - 1,
            "mean": means(progress.rows, config.modes),
        }
        if is_first_rank():
            run_folder.write_json(found, config.out_dir / run_folder.METRICS_FILE)
        if place + 1 == len(names):
            break
        known = pa.concat_tables([days[name] for name in names[: place + 1]])
        models = dict(progress.models)
        for mode in config.modes:
            if mode == "incremental":
                models[mode] = train_on(config, dataset, day, known=known, older=models[mode])
                if models[mode].odd is not None:
                    odd = {"day": names[place], "mode": mode, "what": models[mode].odd}
                    logger.warning("%s, %s: %s", *odd.values())
                    progress.odd_days.append(odd)
            elif mode == "retrained":
                models[mode] = train_new(config, dataset, known)
        progress.models, progress.place = models, place
    if progress.odd_days:
        logger.warning("%d of %d days were odd", len(progress.odd_days), len(names) - len(start))
    if is_first_rank():
        write_report(found, config.out_dir)
        progress_folder.remove()
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
    data.train = data.encode_days(known)
    tasks = learn_tasks(config.tasks, data)
    torch.manual_seed(config.seed)
    rate = config.train.negative_rate
    model = CtrModel(config.head, data=data, content=None, tasks=tasks, negative_rate=rate)
    fit_config = config.as_fit()
    objective = Objective(fit_config, data=data, tasks=tasks)
    remedy = f"raise first_days, {config.first_days}"
    check_outcomes(
        fit_config, data=data, tasks=tasks, where=f"{dataset.dir}: first days", remedy=remedy
    )
    trainer = _trainer(config, epochs=config.train.max_epochs)
    seconds = _train(config, data, model, objective=objective, trainer=trainer)
    return Trained(data, tasks, model, objective.state(), seconds, data.vocabulary.num_rows)


def train_on(
    config: DailyConfig, dataset: Dataset, day: pa.Table, *, known: pa.Table, older: Trained
) -> Trained:
    """Yesterday's model goes on with one more day; the optimiser starts anew.

    A value is new once all known days have it `min_count` times; what is hashed, and scales of
    labels and of numbers, stay those of the first days. A day that cannot be trained on leaves
    yesterday's model as it is.
    """
    before = older.data.vocabulary
    data = CtrData.learn(dataset, config, train=known, older=before)
    data.vocabulary = grown_vocabulary(before, data.vocabulary)
    data.train = data.encode_days(day)
    trainer = _trainer(config, epochs=config.day_epochs)
    why_not = passed_over(config, data, num_ranks=trainer.world_size)
    if why_not is not None:
        return dataclasses.replace(older, seconds=0.0, new_values=0, odd=why_not)
    torch.manual_seed(config.seed)
    rate = config.train.negative_rate
    model = CtrModel(config.head, data=data, content=None, tasks=older.tasks, negative_rate=rate)
    new_values = take_over_weights(
        model,
        data.vocabulary,
        older.model.state_dict(),
        older=before,
        source="yesterday",
    )
    objective = Objective(config.as_fit(), data=data, tasks=older.tasks)
    objective.take_over(older.learnt, older=before, vocabulary=data.vocabulary)
    seconds = _train(config, data, model, objective=objective, trainer=trainer, last_batch="shared")
    constant = constant_labels(data, older.tasks)
    odd = f"learnt with one value alone of {', '.join(constant)}" if constant else None
    return Trained(data, older.tasks, model, objective.state(), seconds, new_values, odd)


def passed_over(config: DailyConfig, data: CtrData, *, num_ranks: int) -> str | None:
    """Why a day cannot be trained on; None: it can."""
    if config.head.name == "two_arms" and not has_both_arms(data.train):
        return "passed over, as one arm alone says nothing of the other"
    num_rows = num_training_rows(data.train, negative_rate=config.train.negative_rate)
    if num_rows < num_ranks:
        return (
            f"passed over, as {num_rows} impressions to train on are too few for {num_ranks} ranks"
        )
    return None


def test(trained: Trained, day: pa.Table) -> dict[str, Any]:
    """Figures of every task on a day that the model has not seen; NaN where a day has none."""
    data = trained.data
    impressions = data.encode_days(day)
    table = CtrTable(impressions, data.users, data.items, None)
    predicted = trained.model.predictions(table)
    figures = all_figures(trained.tasks, impressions, predicted, one_arm="nan")
    more = {} if len(figures) == 1 else {"tasks": figures}
    return figures[trained.tasks[0].name] | more


def means(rows: list[dict[str, Any]], modes: tuple[DailyMode, ...]) -> dict[str, Any]:
    """Mean over the days of each mode's figures of the first task, and the whole training time.

    Over the days that have a figure: NaN, or null where it was written, is none.
    """
    found: dict[str, Any] = {}
    for mode in modes:
        own = [row for row in rows if row["mode"] == mode]
        found[mode] = {}
        for name in (name for name in own[0] if name not in _NOT_FIGURES):
            known = [row[name] for row in own if row[name] is not None and row[name] == row[name]]
            found[mode][name] = float(np.mean(known)) if known else float("nan")
        found[mode]["train_seconds"] = round(sum(_training_times(own, mode)), 2)
    return found


def _training_times(rows: list[dict[str, Any]], mode: DailyMode) -> list[float]:
    """Seconds of each training; a stale model was trained once, however often it is tested."""
    seconds = [float(row["train_seconds"]) for row in rows]
    return seconds[:1] if mode == "stale" else seconds


def _train(
    config: DailyConfig,
    data: CtrData,
    model: CtrModel,
    *,
    objective: Objective,
    trainer: pl.Trainer,
    last_batch: LastBatch = "dropped",
) -> float:
    """Train in place; returns the seconds it took."""
    started = time.monotonic()
    table = CtrTable(data.train, data.users, data.items, None, config.shuffle_rows)
    module = CtrModule(
        model,
        config.train,
        objective=objective,
        train=table,
        valid=table,
        seed=config.seed,
        last_batch=last_batch,
    )
    train(trainer, module)
    return time.monotonic() - started


def _trainer(config: DailyConfig, *, epochs: int) -> pl.Trainer:
    """Trains for a fixed number of epochs."""
    return trainer_of(
        config.trainer,
        gradient_clip_val=config.train.grad_clip_norm or None,
        max_epochs=epochs,
        limit_val_batches=0,
        enable_progress_bar=False,
    )
