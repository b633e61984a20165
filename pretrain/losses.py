"""Contrastive losses as pure functions of a positive and its summed negatives.

`tiles.py` sums the negatives of each row, `negatives.py` says which there are. Letters: see
`batch.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_inclusion_probability(probability_G: Tensor, *, num_draws: Tensor | float) -> Tensor:
    """Log Q: how likely an item is among the *distinct* targets of `num_draws` draws.

    The sampled-softmax correction of Yi et al. (RecSys 2019, eq. 3) with the inclusion
    probability 1 - (1 - p)^N of a de-duplicated batch in the place of the frequency p.
    Items that are never drawn get the smallest positive number, so that the result is finite.
    """
    inclusion_G = -torch.expm1(num_draws * torch.log1p(-probability_G.double().clamp(max=1 - 1e-9)))
    return inclusion_G.clamp(min=1e-12).log().float()


def info_nce_losses(positive_P: Tensor, negatives_P: Tensor) -> Tensor:
    """InfoNCE of each row (van den Oord et al. 2018, eq. 4).

    Args:
        positive_P: logit of the row's own item.
        negatives_P: log-sum-exp of the logits of its negatives, -inf for none.

    Returns:
        One loss a row, [P]; 0 for a row without negatives.
    """
    return torch.logaddexp(positive_P, negatives_P) - positive_P


def corrected_losses(positive_P: Tensor, negatives_P: Tensor) -> Tensor:
    """Sampled softmax whose positive is not treated as a sample (Khrylchenko et al., RecSys 2025).

    arXiv 2507.09331, section 3.3: -sg(1 - P) log[exp f(u, p) / Σ exp(f(u, d) - log Q'(d))] over
    the negatives d alone, with P = exp f(u, p) / (exp f(u, p) + mean of exp(f - log Q')). The
    positive is always there, so its logit is not corrected and it is no term of the sum. For
    n draws with repetition Q'(d) = Q(d) / (1 - Q(p)) and the mean divides by n; our negatives are
    distinct, and the probability that d is among them (that of the n other draws) stands for nQ':
    both sums are then one, an unbiased estimate of Σ exp f over all items but the positive.

    Args:
        positive_P: logit of the row's own item, not corrected.
        negatives_P: log-sum-exp of the corrected logits of its negatives, -inf for none.

    Returns:
        One loss a row, [P]; 0 for a row without negatives.
    """
    some_P = ~negatives_P.isneginf()
    margin_P = torch.where(some_P, negatives_P, positive_P) - positive_P
    return torch.where(some_P, margin_P.sigmoid().detach() * margin_P, 0.0)


def sigmoid_losses(positive_P: Tensor, negatives_P: Tensor) -> Tensor:
    """Every pair is a binary question of its own (SigLIP, Zhai et al. 2023, eq. 1).

    Args:
        positive_P: logit of the row's own pair, bias included.
        negatives_P: sum of softplus of the logits of its other pairs.
    """
    return F.softplus(-positive_P) + negatives_P


def prefix(vectors_nD: Tensor, width: int) -> Tensor:
    """The first `width` numbers of unit vectors, of unit length again.

    Matryoshka representations (Kusupati et al., NeurIPS 2022, section 3).
    """
    if width == vectors_nD.shape[-1]:
        return vectors_nD
    return F.normalize(vectors_nD[..., :width], dim=-1)


def ramped(weight: float, *, ramp_steps: int, step: int) -> float:
    """A weight that rises linearly from 0 and is reached after `ramp_steps`; 0: constant."""
    return weight * min(1.0, (step + 1) / ramp_steps) if ramp_steps else weight
