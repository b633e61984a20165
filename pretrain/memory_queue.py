"""Item vectors of past steps, as further negatives (cross-batch memory, Wang et al., CVPR 2020).

The same on every rank, and part of the training checkpoint, so that a resumed run is exact.
Letters: see `batch.py`; Q places of the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.modality_dropout import row_hash


@dataclass(frozen=True, kw_only=True)
class PastItems:
    """Some of the queue, newest first."""

    vectors_QD: Tensor
    """Without gradient, as they were when their step was taken."""
    rows_Q: Tensor
    groups_Q: Tensor
    draws: Tensor
    """How many draws of targets the whole queue goes back."""


class VectorQueue(nn.Module):
    """The items that were drawn last, each once, by its newest vector."""

    def __init__(self, size: int, *, width: int) -> None:
        super().__init__()
        self.vectors_QD: Tensor
        self.rows_Q: Tensor
        self.groups_Q: Tensor
        self.age_Q: Tensor
        self.register_buffer("vectors_QD", torch.zeros(size, width))
        self.register_buffer("rows_Q", torch.full((size,), -1))
        self.register_buffer("groups_Q", torch.full((size,), -1))
        # Draws since an item was drawn last: the queue holds what the last max(age) draws drew.
        self.register_buffer("age_Q", torch.zeros(size, dtype=torch.float64))

    def without(self, rows_G: Tensor) -> PastItems:
        """The queue but for these items, which are there anew."""
        kept_Q = (self.rows_Q >= 0) & ~torch.isin(self.rows_Q, rows_G)
        return PastItems(
            vectors_QD=self.vectors_QD[kept_Q],
            rows_Q=self.rows_Q[kept_Q],
            groups_Q=self.groups_Q[kept_Q],
            draws=self.age_Q.max(),
        )

    @torch.no_grad()
    def push(
        self, item_GD: Tensor, rows_G: Tensor, groups_G: Tensor, *, draws: Tensor, step: int
    ) -> None:
        """Put this step's items first; the oldest fall out."""
        size = len(self.rows_Q)
        # What falls out first within a step is arbitrary, but never the same items each time.
        order_G = torch.argsort(row_hash(rows_G, step=step))
        kept_Q = (self.rows_Q >= 0) & ~torch.isin(self.rows_Q, rows_G)
        fresh_age_G = torch.zeros(len(rows_G), dtype=torch.float64, device=rows_G.device)
        for held, fresh in (
            (self.vectors_QD, item_GD),
            (self.groups_Q, groups_G),
            (self.age_Q, fresh_age_G),
            (self.rows_Q, rows_G),
        ):
            joined = torch.cat([fresh[order_G].to(held.dtype), held[kept_Q]])[:size]
            held.zero_()
            held[: len(joined)] = joined
        filled = min(size, len(rows_G) + int(kept_Q.sum()))
        self.rows_Q[filled:] = -1
        self.age_Q[:filled] += draws
