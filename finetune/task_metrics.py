"""What is measured of each task: ranking and calibration of clicks and of numbers, and uplift.

Shapes: N impressions.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.data import Impressions
from finetune.lifetime_value import normalised_gini
from finetune.metrics import auc, calibration_ratio, check_scores, gauc, log_loss
from finetune.tasks import Task, label_of
from finetune.uplift_curves import auuc, qini_coefficient, uplift_curve

Figures = dict[str, float]
UPLIFT = "uplift"
UPLIFT_FIGURES = ("qini", "auuc", "average_effect", "predicted_effect")


def task_figures(
    task: Task,
    user_N: NDArray[np.integer],
    label_N: NDArray[np.floating],
    *,
    predicted_N: NDArray[np.floating],
) -> Figures:
    """AUC, GAUC, log loss and calibration of a probability; errors and Gini of a number.

    A figure that does not exist is NaN: AUC with one class, Gini with negative or equal values.
    """
    if task.is_binary:
        return {
            "auc": auc(label_N, predicted_N),
            "gauc": gauc(user_N, label_N, score_N=predicted_N).value,
            "logloss": log_loss(label_N, predicted_N),
            "calibration": calibration_ratio(label_N, predicted_N),
        }
    check_scores(predicted_N)
    error_N = predicted_N.astype(np.float64) - label_N
    spread = float(np.square(label_N - label_N.mean(dtype=np.float64)).mean())
    mse = float(np.square(error_N).mean())
    return {
        "rmse": mse**0.5,
        "mae": float(np.abs(error_N).mean()),
        "r2": 1 - mse / spread if spread else float("nan"),
        "gini": normalised_gini(label_N, predicted_N) if (label_N >= 0).all() else float("nan"),
        "calibration": calibration_ratio(label_N, predicted_N),
    }


def all_figures(
    tasks: Sequence[Task],
    impressions: Impressions,
    predicted: Mapping[str, Tensor],
    *,
    one_arm: Literal["refuse", "nan"] = "refuse",
) -> dict[str, Figures]:
    """Figures of every task by name; of two arms of their one label, and of its uplift.

    Impressions of one arm alone say nothing of an uplift: `one_arm` is what becomes of that.
    """
    user_N = impressions.user_N.numpy()
    if UPLIFT in predicted:
        label_N = label_of(impressions, tasks[0].name).numpy()
        factual_N = primary_prediction(impressions, predicted).numpy()
        return {
            tasks[0].name: task_figures(tasks[0], user_N, label_N, predicted_N=factual_N),
            UPLIFT: uplift_figures(impressions, label_N, predicted)
            if one_arm == "refuse" or has_both_arms(impressions)
            else dict.fromkeys(UPLIFT_FIGURES, float("nan")),
        }
    return {
        task.name: task_figures(
            task,
            user_N,
            label_of(impressions, task.name).numpy(),
            predicted_N=predicted[task.name].numpy(),
        )
        for task in tasks
    }


def has_both_arms(impressions: Impressions) -> bool:
    """Whether some are treated, and some are not."""
    return 0 < float(impressions.outcomes["treatment"].mean()) < 1


def primary_prediction(impressions: Impressions, predicted: Mapping[str, Tensor]) -> Tensor:
    """The first task's prediction; of two arms that of the arm an impression was in, [N]."""
    if UPLIFT not in predicted:
        return next(iter(predicted.values()))
    treated_N = impressions.outcomes["treatment"] > 0.5
    return predicted["treated"].where(treated_N, predicted["control"])


def uplift_figures(
    impressions: Impressions, label_N: NDArray[np.floating], predicted: Mapping[str, Tensor]
) -> Figures:
    """Qini coefficient, AUUC, and the average effect of treating all, seen and predicted."""
    arms = {
        "treated_N": impressions.outcomes["treatment"].numpy().astype(np.int64),
        "score_N": predicted[UPLIFT].double().numpy(),
    }
    return {
        "qini": qini_coefficient(label_N, **arms),
        "auuc": auuc(label_N, **arms),
        "average_effect": float(uplift_curve(label_N, **arms).gain_K[-1]),
        "predicted_effect": float(arms["score_N"].mean()),
    }


def monitored(tasks: Sequence[Task], figures: Mapping[str, Figures], name: str | None) -> float:
    """What says when to stop, larger being better: one task's, or the mean of all that exist.

    Of a click AUC, of a number the normalised Gini, or R² where it has none, of uplift Qini.
    """
    if UPLIFT in figures:
        return figures[UPLIFT]["qini"]
    values = {}
    for task in tasks:
        of_task = figures[task.name]
        if task.is_binary:
            values[task.name] = of_task["auc"]
        else:
            values[task.name] = of_task["r2" if np.isnan(of_task["gini"]) else "gini"]
    if name is not None:
        return values[name]
    known = [value for value in values.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
