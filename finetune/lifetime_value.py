"""Lifetime value: mostly zero, else heavy-tailed, by a zero-inflated lognormal.

Wang, Liu and Miao 2019 (A deep probabilistic model for customer lifetime value prediction).

Shapes: B customers of a batch, N customers, 3 outputs of a network: the logit of buying at all, the
mean of the log value, and its standard deviation before softplus.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.metrics import average_ranks

_LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))
_LEAST_STD = 1e-3
"""Keeps the density finite where a batch's positive values are all predicted exactly."""


def ziln_loss(output_B3: Tensor, value_B: Tensor) -> Tensor:
    """Mean of `ziln_errors`; a batch without a buyer trains the first part alone."""
    return ziln_errors(output_B3, value_B).mean()


def ziln_errors(output_B3: Tensor, value_B: Tensor) -> Tensor:
    """Negative log likelihood, [B]: of buying, and of the log value of those who bought.

    -log p(x) = BCE(1{x>0}; p) + 1{x>0} (log(x σ √(2π)) + (log x - μ)² / (2 σ²)), the paper's ZILN
    loss.
    """
    _check_values(value_B, name="value_B")
    bought_B = value_B > 0
    loss_B = F.binary_cross_entropy_with_logits(
        output_B3[:, 0], bought_B.to(output_B3.dtype), reduction="none"
    )
    # Not log(0): its NaN gradient would survive the mask.
    log_value_B = torch.where(bought_B, value_B, torch.ones_like(value_B)).log()
    std_B = _std(output_B3)
    standard_B = (log_value_B - output_B3[:, 1]) / std_B
    lognormal_B = log_value_B + std_B.log() + _LOG_SQRT_2_PI + standard_B.square() / 2
    return loss_B + torch.where(bought_B, lognormal_B, torch.zeros_like(loss_B))


def ziln_log_mean(output_B3: Tensor) -> Tensor:
    """The log of E[x], log p + μ + σ² / 2, [B]; it ranks where the mean itself would overflow."""
    log_chance_B = F.logsigmoid(output_B3[:, 0])
    return log_chance_B + output_B3[:, 1] + _std(output_B3).square() / 2


def ziln_mean(output_B3: Tensor) -> Tensor:
    """E[x] = p exp(μ + σ² / 2), [B]: the predicted value."""
    return ziln_log_mean(output_B3).exp()


def _std(output_B3: Tensor) -> Tensor:
    return F.softplus(output_B3[:, 2]) + _LEAST_STD


def gini(value_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> float:
    """Twice the area between the diagonal and the Lorenz curve of values in order of score.

    = Σ_i x_i (2 rank_i - N - 1) / (N Σ_i x_i), ranks from the lowest score, ties sharing theirs:
    the mean over every order of the tied. NaN if no value is positive.
    """
    _check_values(torch.as_tensor(value_N), name="value_N")
    if score_N.shape != value_N.shape or not np.isfinite(score_N).all():
        raise ValueError(
            f"score_N: found shape {score_N.shape}, NaN or infinity, expected a finite score for "
            f"each of the {len(value_N)} values"
        )
    value_N = value_N.astype(np.float64)
    total = float(value_N.sum())
    if total == 0:
        return float("nan")
    place_N = 2 * average_ranks(score_N) - len(value_N) - 1
    return float((value_N * place_N).sum() / (len(value_N) * total))


def normalised_gini(value_N: NDArray[np.floating], score_N: NDArray[np.floating]) -> float:
    """Gini of the score over that of the values themselves: 1 at best, 0 by chance.

    Of values that are 0 or 1 it is 2 AUC - 1. NaN if all values are equal.
    """
    best = gini(value_N, value_N)
    return gini(value_N, score_N) / best if best > 0 else float("nan")


def _check_values(value: Tensor, *, name: str) -> None:
    if len(value) == 0 or not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError(
            f"{name}: found no value, or one that is negative, NaN or infinite, expected values "
            "from 0 up, refunds netted"
        )
