"""How far a mean over users could lie from here by the luck of who was asked."""

from __future__ import annotations

import numpy as np
from torch import Tensor

DRAWS = 1000
CHUNK = 50


def bootstrap_interval(
    values_U: Tensor, *, share: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over users (Efron 1979), from `DRAWS` resamples.

    A resample draws as many users with replacement as there are; one user gives one point.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: found {share}, expected between 0 and 1, e.g. 0.95")
    values = values_U.double().numpy()
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=(CHUNK, len(values)))].mean(1)
        for _ in range(DRAWS // CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
