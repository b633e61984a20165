"""A term that keeps the fusion from ignoring a modality. Letters: see `batch.py`; M modalities."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.collectives import gather_counts, gather_rows, rank
from pretrain.negatives import first_places


def gate_balance(gate_nM: Tensor, seen_nM: Tensor, *, rows_n: Tensor) -> Tensor:
    """KL divergence of the mean gate from an even one, over items that show two or more modalities.

    With u the mean of even weights over the modalities an item shows, and g the mean of its gate,
    both over the distinct items of every rank: Σ_m u_m log(u_m / g_m). It is 0 where the mean is
    even, and grows without bound as a modality's mean weight goes to 0; single items may lean on
    one modality as they like. This is the load-balancing of gates in mixtures of experts (Shazeer
    et al. 2017, section 4) with a divergence in the place of the coefficient of variation.

    Args:
        gate_nM: weights of the fusion on this rank.
        seen_nM: True where a modality is present and not dropped.
        rows_n: item rows; an item on two ranks counts once.

    Returns:
        The same number on every rank, 0 where no item shows two modalities.
    """
    counts = gather_counts(len(rows_n), device=rows_n.device)
    rows_G = gather_rows(rows_n, counts=counts)
    first_G = torch.zeros_like(rows_G, dtype=torch.bool)
    first_G[first_places(rows_G)] = True
    start = sum(counts[: rank()])
    counted_n1 = (first_G[start : start + len(rows_n)] & (seen_nM.sum(1) > 1))[:, None]
    shown_nM = (seen_nM & counted_n1).to(torch.float32)
    even_nM = shown_nM / shown_nM.sum(1, keepdim=True).clamp(min=1)
    gate_nM = gate_nM.float() * shown_nM
    gate_nM = gate_nM / gate_nM.sum(1, keepdim=True).clamp(min=1e-12)
    sums_2M = torch.stack([even_nM.sum(0), gate_nM.sum(0)])
    sums_R2M = gather_rows(sums_2M[None], counts=[1] * len(counts))
    even_M, mean_M = sums_R2M.sum(0).unbind(0)
    total = even_M.sum().clamp(min=1)
    used_M = even_M > 0
    ratio_M = torch.where(used_M, even_M, 1.0) / torch.where(used_M, mean_M, 1.0).clamp(min=1e-12)
    divergence: Tensor = (even_M / total * ratio_M.log()).sum()
    return divergence
