"""A run on its test split: figures of every task, and the columns of its predictions.

Shapes: N impressions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_prep.dataset import Dataset
from finetune.data import Impressions
from finetune.slices import slice_masks, slice_metrics
from finetune.task_metrics import UPLIFT, all_figures, primary_prediction
from finetune.tasks import CLICK_TASK, Task, label_of

Column = NDArray[np.float32]


@dataclass(frozen=True)
class Tested:
    """What is found on test."""

    figures: dict[str, float]
    """Of the first task, by slices where it is binary."""
    counts: dict[str, int]
    of_tasks: dict[str, Any]
    """`tasks` and `uplift` of metrics.json; empty for the click alone."""
    columns: dict[str, Column]
    """Of predictions.parquet."""


def evaluate(
    tasks: Sequence[Task],
    test: Impressions,
    predicted: Mapping[str, Tensor],
    *,
    dataset: Dataset,
) -> Tested:
    """Figures of every task; those of the first one are what reports compare."""
    first = tasks[0]
    label_N = label_of(test, first.name).numpy()
    score_N = primary_prediction(test, predicted).numpy()
    by_task = all_figures(tasks, test, predicted)
    if first.is_binary:
        masks = slice_masks(dataset, test.user_N.numpy(), test.item_N.numpy())
        figures, counts = slice_metrics(test.user_N.numpy(), label_N, score_N=score_N, masks=masks)
    else:
        figures, counts = by_task[first.name], {"impressions": len(label_N)}
    of_tasks: dict[str, Any] = {}
    uplift = by_task.pop(UPLIFT, None) if UPLIFT in predicted else None
    if list(tasks) != [CLICK_TASK] or uplift is not None:
        of_tasks["tasks"] = by_task
    if uplift is not None:
        of_tasks["uplift"] = uplift
    columns: dict[str, Column] = {"label": label_N, "score": score_N}
    for task in tasks[1:]:
        columns[f"label_{task.name}"] = label_of(test, task.name).numpy()
    if UPLIFT in predicted:
        columns["treatment"] = test.outcomes["treatment"].numpy()
    return Tested(figures, counts, of_tasks, columns | _further(predicted))


def score_columns(predicted: Mapping[str, Tensor]) -> dict[str, Column]:
    """Predictions as columns: `score`, and `score_NAME` of further tasks; of two arms all three."""
    first = {} if UPLIFT in predicted else {"score": next(iter(predicted.values())).numpy()}
    return first | _further(predicted)


def _further(predicted: Mapping[str, Tensor]) -> dict[str, Column]:
    names = list(predicted) if UPLIFT in predicted else list(predicted)[1:]
    return {f"score_{name}": predicted[name].numpy() for name in names}
