"""What `daily` has learnt so far, kept so that one that was killed goes on.

state/
  state.json       the day that was learnt last, rows so far, and each mode's folder; written last
  DAY-MODE/        a model: vocabulary, weights, tasks, and what was learnt beside it
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from data_prep.dataset import Dataset
from data_prep.records import MANIFEST_FILE
from finetune import run_folder
from finetune.daily_settings import DailyConfig, DailyMode
from finetune.data import CtrData
from finetune.model import CtrModel
from finetune.tasks import Task, as_json, read_tasks
from finetune.warm_start import older_objective, older_vocabulary, write_objective

logger = logging.getLogger(__name__)

STATE_VERSION = 1
STATE_DIR, STATE_FILE = "state", "state.json"


@dataclass
class Trained:
    """A model and the vocabulary it reads by."""

    data: CtrData
    tasks: list[Task]
    model: CtrModel
    learnt: dict[str, Tensor]
    """What was learnt beside the model, see `Objective.state`."""
    seconds: float
    new_values: int
    odd: str | None = None
    """What was odd about the day that it was to learn last."""


@dataclass
class Progress:
    """Where a daily training is."""

    models: dict[DailyMode, Trained]
    place: int
    """The last day that was learnt, counted from 0."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Figures of the days that were tested before it was learnt, and its own."""
    odd_days: list[dict[str, Any]] = field(default_factory=list)


class ProgressFolder:
    """Saves and restores the progress of one training."""

    def __init__(self, config: DailyConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.dir = config.out_dir / STATE_DIR
        of_no_figure = run_folder.NOT_IN_FINGERPRINT
        settings = {k: v for k, v in run_folder.plain(config).items() if k not in of_no_figure}
        known = hashlib.sha256(json.dumps([STATE_VERSION, settings], sort_keys=True).encode())
        known.update((dataset.dir / MANIFEST_FILE).read_bytes())
        self.fingerprint = known.hexdigest()
        self._saved: list[tuple[Trained, str]] = []  # a model that did not change is written once

    def save(self, progress: Progress) -> None:
        """Write the models that changed, then state.json, and drop what it no longer names."""
        saved: list[tuple[Trained, str]] = []
        folders: dict[str, str] = {}
        for mode, trained in progress.models.items():
            name = next((name for one, name in [*self._saved, *saved] if one is trained), None)
            if name is None:
                name = f"{progress.place}-{mode}"
                _write(trained, self.dir / name)
            saved.append((trained, name))
            folders[mode] = name
        self._saved = saved
        about = {
            "fingerprint": self.fingerprint,
            "place": progress.place,
            "models": {
                mode: {
                    "folder": folders[mode],
                    "seconds": trained.seconds,
                    "new_values": trained.new_values,
                    "odd": trained.odd,
                }
                for mode, trained in progress.models.items()
            },
            "rows": progress.rows,
            "odd_days": progress.odd_days,
        }
        run_folder.write_json(about, self.dir / STATE_FILE)
        for folder in self.dir.iterdir():
            if folder.is_dir() and folder.name not in folders.values():
                shutil.rmtree(folder)

    def restore(self) -> Progress | None:
        """What `save` wrote, if it is of the same settings and data."""
        path = self.dir / STATE_FILE
        if not path.is_file():
            return None
        about = json.loads(path.read_text())
        if about["fingerprint"] != self.fingerprint:
            logger.info("%s: of other settings or data, so the days start anew", path)
            return None
        opened: dict[str, Trained] = {}
        models: dict[DailyMode, Trained] = {}
        for mode, one in about["models"].items():
            name = one["folder"]
            if name not in opened:
                counted = {key: one[key] for key in ("seconds", "new_values", "odd")}
                opened[name] = dataclasses.replace(self._open(self.dir / name), **counted)
            models[mode] = opened[name]
        self._saved = [(trained, name) for name, trained in opened.items()]
        logger.info("%s: going on after %d days", path, about["place"] + 1)
        return Progress(models, about["place"], about["rows"], about["odd_days"])

    def remove(self) -> None:
        """Drop it all: the training is finished."""
        shutil.rmtree(self.dir, ignore_errors=True)

    def _open(self, folder: Path) -> Trained:
        data = CtrData.of(self.dataset, older_vocabulary(folder), self.config)
        tasks = read_tasks(folder)
        rate = self.config.train.negative_rate
        model = CtrModel(self.config.head, data=data, content=None, tasks=tasks, negative_rate=rate)
        model.load_state_dict(load_file(folder / run_folder.WEIGHTS_FILE))
        return Trained(data, tasks, model, older_objective(folder), seconds=0.0, new_values=0)


def _write(trained: Trained, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a life that was killed as it wrote
    folder.mkdir(parents=True)
    trained.data.vocabulary.save(folder / run_folder.VOCABULARY_FILE)
    run_folder.write_json(as_json(trained.tasks), folder / run_folder.TASKS_FILE)
    run_folder.write_tensors(trained.model.state_dict(), folder / run_folder.WEIGHTS_FILE)
    write_objective(trained.learnt, folder)
