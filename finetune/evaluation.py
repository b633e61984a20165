"""A run on the split it is judged on: figures of every task, and columns of its predictions.

Shapes: N impressions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.data import Impressions
from finetune.slices import slice_metrics
from finetune.task_metrics import UPLIFT, all_figures, primary_prediction
from finetune.task_settings import CLICK
from finetune.tasks import Task, label_of

Column = NDArray[np.float32]


@dataclass(frozen=True)
class Tested:
    """What is found."""

    figures: dict[str, float]
    """Of the first task, by slices where it is binary."""
    counts: dict[str, int]
    of_tasks: dict[str, Any]
    """`tasks` and `uplift` of metrics.json; empty for the click alone."""
    columns: dict[str, Column]
    """Of predictions.parquet."""


def evaluate(
    tasks: Sequence[Task],
    judged: Impressions,
    predicted: Mapping[str, Tensor],
    *,
    masks: dict[str, NDArray[np.bool_]],
) -> Tested:
    """Figures of every task; those of the first one, by slices, are what reports compare."""
    first = tasks[0]
    label_N = label_of(judged, first.name).numpy()
    score_N = primary_prediction(judged, predicted).numpy()
    by_task = all_figures(tasks, judged, predicted)
    if first.is_binary:
        figures, counts = slice_metrics(
            judged.user_N.numpy(), label_N, score_N=score_N, masks=masks
        )
    else:
        figures, counts = by_task[first.name], {"impressions": len(label_N)}
    of_tasks: dict[str, Any] = {}
    uplift = by_task.pop(UPLIFT, None) if UPLIFT in predicted else None
    if [task.name for task in tasks] != [CLICK] or uplift is not None:
        of_tasks["tasks"] = by_task
    if uplift is not None:
        of_tasks["uplift"] = uplift
    columns: dict[str, Column] = {"label": label_N, "score": score_N}
    for task in tasks[1:]:
        columns[f"label_{task.name}"] = label_of(judged, task.name).numpy()
    if UPLIFT in predicted:
        columns["treatment"] = judged.outcomes["treatment"].numpy()
    return Tested(figures, counts, of_tasks, columns | _further(predicted))


def score_columns(predicted: Mapping[str, Tensor]) -> dict[str, Column]:
    """Predictions as columns: `score`, and `score_NAME` of further tasks; of two arms all three."""
    first = {} if UPLIFT in predicted else {"score": next(iter(predicted.values())).numpy()}
    return first | _further(predicted)


def _further(predicted: Mapping[str, Tensor]) -> dict[str, Column]:
    names = list(predicted) if UPLIFT in predicted else list(predicted)[1:]
    return {f"score_{name}": predicted[name].numpy() for name in names}
