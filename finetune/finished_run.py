"""A finished run, opened again: its settings, its vocabulary, and its model on a dataset."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from data_prep.dataset import Dataset, open_dataset
from finetune import run_folder
from finetune.batches import CtrTable
from finetune.content import Content, open_content
from finetune.data import CtrData, Impressions
from finetune.model import CtrModel
from finetune.settings import FitConfig
from finetune.tasks import Task, read_tasks
from finetune.vocabulary import Vocabulary


@dataclass(frozen=True)
class FinishedRun:
    """What a run left, ready to score."""

    config: FitConfig
    record: dict[str, Any]
    data: CtrData
    """The dataset, encoded by the run's vocabulary."""
    content: Content | None
    tasks: list[Task]
    model: CtrModel

    def predictions(self, impressions: Impressions) -> dict[str, Tensor]:
        """What the run predicts of impressions that its own data has encoded, by name."""
        features = self.content.features(self.data, impressions) if self.content else None
        table = CtrTable(impressions, self.data.users, self.data.items, features)
        return self.model.predictions(table)


def open_run(
    run_dir: Path, *, dataset: Dataset | None = None, embeddings_dir: Path | None = None
) -> FinishedRun:
    """Open a run on its own dataset and embeddings, or on others that know the same fields."""
    record = run_folder.read_record(run_dir)
    config = run_folder.read_config(run_dir)
    if dataset is None:
        dataset = open_dataset(config.dataset_dir)
    else:  # cached features are those of the items trained on
        content_config = dataclasses.replace(config.content, features_dir=None)
        config = dataclasses.replace(config, dataset_dir=dataset.dir, content=content_config)
    if embeddings_dir is not None:
        config = dataclasses.replace(config, embeddings_dir=embeddings_dir)
    vocabulary = Vocabulary.load(run_dir / run_folder.VOCABULARY_FILE)
    data = CtrData.of(dataset, vocabulary, config)
    content = open_content(config.rung, config, dataset=dataset, seed=config.seed)
    if content is not None:
        content.restore(load_file(run_dir / run_folder.CONTENT_FILE))
    tasks = read_tasks(run_dir)
    rng_state = torch.get_rng_state()  # the weights drawn here are replaced at once
    model = CtrModel(
        config.head,
        data=data,
        content=content,
        tasks=tasks,
        negative_rate=config.train.negative_rate,
    )
    torch.set_rng_state(rng_state)
    model.load_state_dict(read_weights(run_dir))
    return FinishedRun(config, record, data, content, tasks, model.eval())


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """Weights of a run's best epoch; in older runs the bias has no dimension."""
    weights = load_file(run_dir / run_folder.WEIGHTS_FILE)
    weights["fields.bias"] = weights["fields.bias"].reshape(1)
    return weights
