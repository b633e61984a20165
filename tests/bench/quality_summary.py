"""Figures of several seeds as one: the mean, and an interval over seeds and users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.intervals import bootstrap_interval

NORMAL_95 = 1.96


def over_seeds(runs: Sequence[Mapping[str, Any]], *, metric: str) -> dict[str, Any]:
    """Mean of the seeds, every seed's value, and a 95 % interval.

    All seeds answer the same users, so that the error over users does not shrink with more seeds:
    the variance is that over users (mean of the runs) plus that of the mean over seeds.
    """
    values = [float(run[metric]) for run in runs]
    mean = sum(values) / len(values)
    over_users = sum(float(run["se"]) ** 2 for run in runs) / len(runs)
    spread = sum((value - mean) ** 2 for value in values)
    over_runs = spread / (len(values) - 1) / len(values) if len(values) > 1 else 0.0
    half = NORMAL_95 * math.sqrt(over_users + over_runs)
    return {
        "mean": round(mean, 4),
        "low": round(mean - half, 4),
        "high": round(mean + half, 4),
        "seeds": [round(value, 4) for value in values],
    }


def over_users(runs: Sequence[Tensor]) -> dict[str, Any]:
    """Mean of the seeds, every seed's value, and a 95 % bootstrap interval over users.

    `runs` holds of each seed one value a user, [U]; resampled are the users' means over the seeds.
    The luck of the seeds is no part of the interval: look at `seeds` for it.
    """
    low, high = bootstrap_interval(torch.stack(list(runs)).mean(0))
    values = [float(values_U.mean()) for values_U in runs]
    return {
        "mean": round(sum(values) / len(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "seeds": [round(value, 4) for value in values],
    }


def ratio(ours: Mapping[str, Any], reference: float) -> float:
    """Mean of ours over the reference; 0 where the reference found nothing."""
    return round(ours["mean"] / reference, 3) if reference else 0.0
