"""How well the modalities share one space, as pure functions. Letters: see `batch.py`.

All vectors have unit length; rows of `left_nD` and `right_nD` are of the same items.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def modality_gap(left_nD: Tensor, right_nD: Tensor) -> Tensor:
    """Distance of the two modalities' mean vectors (Liang et al. 2022, section 2)."""
    gap: Tensor = (left_nD.mean(0) - right_nD.mean(0)).norm()
    return gap


def alignment(left_nD: Tensor, right_nD: Tensor) -> Tensor:
    """Mean squared distance of the pairs (Wang & Isola 2020, eq. 4, α = 2): 0 is best, 4 worst."""
    return (left_nD - right_nD).square().sum(1).mean()


def uniformity(rows_nD: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs (Wang & Isola 2020, eq. 5, t = 2).

    0 where all vectors are one, about -4 where they fill a sphere of many dimensions evenly.
    """
    exponents = -2 * torch.pdist(rows_nD.float()).square()
    return exponents.logsumexp(0) - math.log(len(exponents))


def effective_rank(rows_nD: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values' shares (Roy & Vetterli 2007, def. 1).

    NaN where a row is not finite, which a run may be set to go on from.
    """
    if not bool(rows_nD.isfinite().all()):
        return rows_nD.new_full((), math.nan)
    share = torch.linalg.svdvals(rows_nD.float())
    share = share / share.sum().clamp(min=1e-12)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


def knock_out_effect(whole_nD: Tensor, without_nD: Tensor) -> Tensor:
    """Mean of 1 - cosine of the items' vectors with and without a modality; 0: it is ignored."""
    return (1 - F.cosine_similarity(whole_nD.float(), without_nD.float(), dim=1)).mean()
