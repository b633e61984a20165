"""One run: one head, one rung, one seed; the test split is opened once, at the end, or never."""

import hashlib
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping, RichProgressBar

from data_prep.dataset import Dataset, open_dataset
from finetune import run_folder
from finetune.allocator import keep_freed_memory
from finetune.batches import CtrTable
from finetune.best_weights import BestWeights
from finetune.content import Content, ContentFeatures, open_content
from finetune.content_settings import ContentConfig
from finetune.data import CtrData, Impressions
from finetune.evaluation import Tested, evaluate
from finetune.groups import check_group_features, group_columns
from finetune.input_checks import check_classes
from finetune.knock_outs import knock_outs
from finetune.make import train_make
from finetune.model import CtrModel
from finetune.module import MONITOR, CtrModule
from finetune.objective import Objective, check_outcomes
from finetune.reuse import reuse
from finetune.settings import FitConfig, InputConfig
from finetune.slices import slice_columns, slice_masks
from finetune.tasks import as_json, check_task_classes, learn_tasks, read_tasks
from finetune.training import is_first_rank, train, trainer_of
from finetune.trust_record import trust_record
from finetune.warm_start import (
    grown_vocabulary,
    older_content,
    older_objective,
    older_vocabulary,
    write_objective,
)
from pretrain import third_party_noise
from pretrain.look_ahead import looks_ahead

logger = logging.getLogger(__name__)


@dataclass
class Inputs:
    """A dataset, encoded once for all the runs that share it."""

    dataset: Dataset
    data: CtrData
    content: dict[tuple[str, ContentConfig, Path | None], tuple[Content, CtrTable, CtrTable]] = (
        field(default_factory=dict)
    )
    """Rungs whose vectors do not depend on the seed, with their training and validation tables; by
    what they went on from, which decides scales and codes."""
    made: dict[str, dict[bytes, ContentFeatures]] = field(default_factory=dict)
    """User vectors and cosines of the splits, which rungs on the same vectors share."""

    @staticmethod
    def open(config: InputConfig) -> "Inputs":
        """Read the dataset and learn its vocabulary."""
        dataset = open_dataset(config.dataset_dir)
        older = None
        if isinstance(config, FitConfig) and config.reuse.warm_start is not None:
            older = older_vocabulary(config.reuse.warm_start)
        data = CtrData.learn(dataset, config, older=older)
        if older is not None:
            data.vocabulary = grown_vocabulary(older, data.vocabulary)
        return Inputs(dataset, data)

    def tables(self, config: FitConfig) -> tuple[Content | None, CtrTable, CtrTable]:
        """A rung's content, and the training and validation tables."""
        key = (config.rung, config.content, config.reuse.warm_start)
        if key in self.content:
            return self.content[key]
        content = open_content(config.rung, config, dataset=self.dataset, seed=config.seed)
        data = self.data
        if content is not None and not content.rung.knows_seed:
            content.made = self.made.setdefault(content.rung.vectors, {})
        older = None
        if content is not None and config.reuse.warm_start is not None:
            older = older_content(config, content)
        of_train = content.fit(data, older=older) if content else None
        of_valid = content.features(data, data.valid) if content else None
        train = CtrTable(data.train, data.users, data.items, of_train, config.shuffle_rows)
        valid = CtrTable(data.valid, data.users, data.items, of_valid)
        if content is not None and not content.rung.knows_seed:
            self.content[key] = (content, train, valid)
        return content, train, valid


def fit(config: FitConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """Train, restore the best epoch, evaluate once on test (or valid), write the run folder.

    Returns what metrics.json holds.
    """
    started = time.monotonic()
    keep_freed_memory()
    inputs = inputs or Inputs.open(config)
    check_group_features(config.trust, inputs.dataset)
    content, train, valid = inputs.tables(config)
    quiet_lightning()
    torch.manual_seed(config.seed)
    older = config.reuse.warm_start
    known = None if older is None else read_tasks(older)
    tasks = learn_tasks(config.tasks, inputs.data, older=known)
    check_task_classes(tasks, inputs.data, monitor=config.train.monitor)
    model = CtrModel(
        config.head,
        data=inputs.data,
        content=content,
        tasks=tasks,
        negative_rate=config.train.negative_rate,
    )
    objective = Objective(config, data=inputs.data, tasks=tasks)
    check_outcomes(
        config,
        data=inputs.data,
        tasks=tasks,
        where=f"{inputs.dataset.dir}/ctr/train",
        remedy="move the cut-offs and re-run python -m data_prep shard",
    )
    reused = reuse(config, model, data=inputs.data)
    if older is not None:
        objective.take_over(
            older_objective(older),
            older=older_vocabulary(older),
            vocabulary=inputs.data.vocabulary,
        )
    made = _make(config, model, train=train, valid=valid)
    module = CtrModule(
        model,
        config.train,
        objective=objective,
        train=train,
        valid=valid,
        seed=config.seed,
        encoder_lr=config.content.tune_lr,
    )
    config.out_dir.mkdir(parents=True, exist_ok=True)
    if is_first_rank():
        run_folder.make_way(config)
    best_epoch = _train(module, config)

    opened_before = inputs.data.test_opened
    judged = inputs.data.valid if config.judged_on == "valid" else inputs.data.open_test()
    columns = [*slice_columns(inputs.dataset), *group_columns(config.trust, inputs.dataset)]
    impressions = inputs.dataset.impressions(config.judged_on, columns=list(dict.fromkeys(columns)))
    masks = slice_masks(inputs.dataset, impressions)

    def judge(of: Content | None) -> Tested:
        features = of.features(inputs.data, judged) if of else None
        table = CtrTable(judged, inputs.data.users, inputs.data.items, features)
        return evaluate(tasks, judged, model.predictions(table), masks=masks)

    tested = judge(content)
    knocked_out = {
        without: judge(blind).figures
        for without, blind in knock_outs(
            config, model, dataset=inputs.dataset, content=content, made=inputs.made
        )
    }
    trust: dict[str, Any] = {}
    if tasks[0].is_binary:
        label_N = tested.columns["label"]
        where = f"{inputs.dataset.dir}/ctr/{config.judged_on}"
        check_classes(label_N, where=where, refuse=False)
        trust = trust_record(
            config.trust,
            model,
            dataset=inputs.dataset,
            impressions=impressions,
            slices=masks,
            label_N=label_N,
            score_N=tested.columns["score"],
            content=content,
            rescore=lambda other: judge(other).columns["score"],
        )
    record = {
        "run_version": run_folder.RUN_VERSION,
        "fingerprint": run_folder.fingerprint(config),
        "rung": config.rung,
        "seed": config.seed,
        "head": config.head.name,
        "judged_on": config.judged_on,
        "test": tested.figures,
        "counts": tested.counts,
        "knock_outs": knocked_out,
        "trust": trust,
        "make": made,
        "valid": module.history[best_epoch - 1],
        "best_epoch": best_epoch,
        "epochs": len(module.history),
        "train_impressions": len(train),
        "test_opened": inputs.data.test_opened - opened_before,
        "parameters": sum(p.numel() for p in model.parameters()),
        "provenance": provenance(config, inputs.dataset, content=content, reused=reused),
        "seconds": round(time.monotonic() - started, 2),
        **reused,
        **tested.of_tasks,
        **objective.learnt(),
    }
    if module.trainer.is_global_zero:  # every rank has the same weights, hence the same figures
        _write(config, inputs, model=model, content=content, history=module.history)
        write_objective(objective.state(), config.out_dir)
        run_folder.write_json(as_json(tasks), config.out_dir / run_folder.TASKS_FILE)
        table = predictions_table(inputs.dataset, judged, tested.columns)
        run_folder.write_predictions(table, config.out_dir / run_folder.PREDICTIONS_FILE)
        run_folder.write_json(record, config.out_dir / run_folder.METRICS_FILE)
    module.trainer.strategy.barrier()  # on every rank a run that has ended is on disk
    return record


def _make(
    config: FitConfig, model: CtrModel, *, train: CtrTable, valid: CtrTable
) -> list[dict[str, float]]:
    """Train what has to be trained before the head; its epochs, none on most rungs."""
    content = model.fields.content
    if content is None or content.make is None:
        return []
    return train_make(
        content,
        train=train,
        valid=valid,
        config=config.content,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )


def _train(module: CtrModule, config: FitConfig) -> int:
    """Train until validation AUC stops rising, restore the best weights; returns their epoch."""
    with tempfile.TemporaryDirectory(dir=config.out_dir, prefix=".checkpoints-") as folder:
        best = BestWeights(Path(folder))
        stop = EarlyStopping(MONITOR, mode="max", patience=config.train.patience)
        callbacks: list[Callback] = [best, stop]
        if config.trainer.progress == "rich":
            callbacks.append(RichProgressBar())
        trainer = trainer_of(
            config.trainer,
            log_every_n_steps=config.trainer.log_every_n_steps,
            enable_progress_bar=config.trainer.progress == "rich",
            gradient_clip_val=config.train.grad_clip_norm or None,
            max_epochs=config.train.max_epochs,
            default_root_dir=config.out_dir,
            callbacks=callbacks,
        )
        train(trainer, module)
        best.restore(trainer, module)
    return best.epoch


def predictions_table(
    dataset: Dataset, impressions: Impressions, columns: Mapping[str, NDArray[np.float32]]
) -> pa.Table:
    """Labels and scores beside the ids they belong to."""
    return pa.table(
        {
            "user_id": dataset.users["user_id"].take(pa.array(impressions.user_N.numpy())),
            "item_id": dataset.items["item_id"].take(pa.array(impressions.item_N.numpy())),
            "time": impressions.time_N.numpy(),
            **columns,
        }
    )


def provenance(
    config: InputConfig,
    dataset: Dataset,
    *,
    content: Content | None,
    reused: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What a figure rests on: data, cut-offs, and how new the release's newest event is.

    `reused` is what `reuse` has said of the runs before this one.
    """
    manifest_bytes = (dataset.dir / "manifest.json").read_bytes()
    release = content.release if content else None
    newest = release.newest_event if release else None
    ahead = ["release"] if newest is not None and looks_ahead(newest, dataset) else []
    ahead += [name for name, about in reused.items() if about["look_ahead"]]
    return {
        "dataset": dataset.manifest.name,
        "dataset_fingerprint": hashlib.sha256(manifest_bytes).hexdigest(),
        "valid_start": dataset.manifest.cutoffs.valid_start,
        "test_start": dataset.manifest.cutoffs.test_start,
        "release_fingerprint": release.fingerprint if release else None,
        "release_newest_event": newest,
        "look_ahead": bool(ahead),
        "looks_ahead": ahead,
    }


def _write(
    config: FitConfig,
    inputs: Inputs,
    *,
    model: CtrModel,
    content: Content | None,
    history: list[dict[str, float]],
) -> None:
    run_folder.write_config(config, config.out_dir)
    run_folder.write_history(history, config.out_dir)
    inputs.data.vocabulary.save(config.out_dir / run_folder.VOCABULARY_FILE)
    run_folder.write_tensors(model.state_dict(), config.out_dir / run_folder.WEIGHTS_FILE)
    if content is not None:
        run_folder.write_tensors(content.state(), config.out_dir / run_folder.CONTENT_FILE)


def quiet_lightning() -> None:
    """Twelve runs in a ladder need not say twelve times that there is no GPU."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*number of training batches.*")
    third_party_noise.silence()
