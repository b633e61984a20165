"""A label as a model learns it: its loss, its scale, and how an output becomes a prediction.

Shapes: N impressions, B impressions of a batch, O outputs of one task.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import Dataset
from data_prep.records import LabelType
from finetune.data import CtrData, Impressions
from finetune.input_checks import check_classes
from finetune.lifetime_value import ziln_errors, ziln_log_mean
from finetune.run_folder import TASKS_FILE
from finetune.task_settings import CLICK, TaskConfig

Loss = Literal["bce", "mse", "log1p_mse", "ziln"]

_LEAST_RATE = 1e-6
_MAX_LOG_VALUE = 30.0
"""Of a lifetime value over the mean: keeps every prediction finite, and its square."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One label, with its scale on the training impressions."""

    name: str = CLICK
    loss: Loss = "bce"
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    """Of the number, or of log(1 + number); 0 and 1 for the other losses."""
    rate: float = 0.5
    """Share of positives in training; of ziln, of values above zero."""

    @property
    def num_outputs(self) -> int:
        """Outputs of a network that the loss reads."""
        return 3 if self.loss == "ziln" else 1

    @property
    def first_output(self) -> list[float]:
        """Outputs that predict the mean of training, where heads of several labels begin.

        A rare label that begins at one half pulls what all tasks share to where it is zero.
        """
        rate = min(max(self.rate, _LEAST_RATE), 1 - _LEAST_RATE)
        log_odds = math.log(rate / (1 - rate))
        return {"bce": [log_odds], "ziln": [log_odds, 0.0, 0.0]}.get(self.loss, [0.0])

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1, and the prediction a probability."""
        return self.loss == "bce"

    def errors(self, output_BO: Tensor, label_B: Tensor) -> Tensor:
        """Loss of each impression, [B]."""
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(output_BO[:, 0], label_B, reduction="none")
        if self.loss == "ziln":
            # In units of the mean value, so that one learning rate serves every currency.
            return ziln_errors(output_BO, label_B / self.std)
        return (output_BO[:, 0] - self.standardised(label_B)).square()

    def standardised(self, label_B: Tensor) -> Tensor:
        """A number as the squared error sees it."""
        value_B = torch.log1p(label_B) if self.loss == "log1p_mse" else label_B
        return (value_B - self.mean) / self.std

    def predict(self, output_BO: Tensor) -> Tensor:
        """Probability of the label, or the number in its own unit, [B]."""
        if self.loss == "bce":
            return torch.sigmoid(output_BO[:, 0])
        if self.loss == "ziln":
            return ziln_log_mean(output_BO).clamp(max=_MAX_LOG_VALUE).exp() * self.std
        value_B = output_BO[:, 0] * self.std + self.mean
        return torch.expm1(value_B) if self.loss == "log1p_mse" else value_B


CLICK_TASK = Task()


def label_of(impressions: Impressions, name: str) -> Tensor:
    """One label of a split, [N]."""
    return impressions.label_N if name == CLICK else impressions.outcomes[name]


def learn_tasks(
    configs: Mapping[str, TaskConfig], data: CtrData, *, older: Sequence[Task] | None = None
) -> list[Task]:
    """The tasks of a run, their scales learnt from the training impressions alone.

    A run that goes on from an older one has the older tasks' scales, which its weights expect.
    """
    known = known_labels(data.dataset)
    tasks = []
    for name, config in (configs or {CLICK: TaskConfig()}).items():
        if name not in known:
            raise ValueError(
                f"tasks: found {name!r}, expected labels of {data.dataset.dir}: {list(known)}; map "
                "it in impressions.labels and re-run python -m data_prep shard"
            )
        tasks.append(_learn_task(name, config, kind=known[name], data=data))
    return tasks if older is None else _on_older_scales(tasks, older)


def _on_older_scales(tasks: Sequence[Task], older: Sequence[Task]) -> list[Task]:
    found, expected = ([(one.name, one.loss) for one in each] for each in (tasks, older))
    if found != expected:
        raise ValueError(
            f"reuse.warm_start: found the tasks {found}, expected {expected} in this order, as in "
            "the older run; correct tasks in the config, or start anew"
        )
    return [
        dataclasses.replace(task, mean=before.mean, std=before.std)
        for task, before in zip(tasks, older, strict=True)
    ]


def known_labels(dataset: Dataset) -> dict[str, LabelType]:
    """Labels of a dataset and their types, the click first."""
    click: dict[str, LabelType] = {CLICK: "binary"}
    return click | dataset.manifest.features.label


def _learn_task(name: str, config: TaskConfig, *, kind: LabelType, data: CtrData) -> Task:
    loss: Loss
    if config.loss == "auto":
        loss = "bce" if kind == "binary" else "mse"
    else:
        loss = config.loss
    if (loss == "bce") != (kind == "binary"):
        raise ValueError(
            f"tasks.{name}.loss: found {loss} of a {kind} label, expected "
            f"{'bce' if kind == 'binary' else 'mse, log1p_mse or ziln'}; correct it in the config"
        )
    label_N = label_of(data.train, name)
    rate = int((label_N > 0).sum()) / len(label_N)
    task = Task(name=name, loss=loss, weight=config.weight, rate=rate)
    if loss == "bce":
        return task
    value_N = label_N.double()
    if loss in ("log1p_mse", "ziln") and bool((value_N < 0).any()):
        raise ValueError(
            f"tasks.{name}.loss: found {loss} and values down to {float(value_N.min()):g}, "
            "expected values from 0 up; use mse, or net them"
        )
    if loss == "ziln":
        bought_N = value_N[value_N > 0]
        scale = float(bought_N.mean()) if len(bought_N) else 1.0
        return dataclasses.replace(task, std=scale)
    value_N = torch.log1p(value_N) if loss == "log1p_mse" else value_N
    std = float(value_N.std(correction=0))
    return dataclasses.replace(task, mean=float(value_N.mean()), std=std if std > 0 else 1.0)


def check_task_classes(tasks: Sequence[Task], data: CtrData, *, monitor: str | None) -> None:
    """Refuse a binary label of one class in validation, where it alone says when to stop.

    Args:
        tasks: what is learnt.
        data: where the validation impressions are.
        monitor: the label that the epoch is chosen by; None: all that have both classes.
    """
    for task in tasks:
        if not task.is_binary:
            continue
        name = "" if task.name == CLICK else f", {task.name}"
        alone = len(tasks) == 1 or monitor == task.name
        label_N = label_of(data.valid, task.name).numpy()
        check_classes(label_N, where=f"{data.dataset.dir}/ctr/valid{name}", refuse=alone)


def as_json(tasks: Sequence[Task]) -> dict[str, Any]:
    """As tasks.json keeps them."""
    return {"tasks": [dataclasses.asdict(task) for task in tasks]}


def read_tasks(run_dir: Path) -> list[Task]:
    """The tasks of a run; of one from before there were several, the click alone."""
    path = run_dir / TASKS_FILE
    if not path.is_file():
        return [CLICK_TASK]
    return [Task(**task) for task in json.loads(path.read_text())["tasks"]]
