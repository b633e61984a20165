"""Several pictures an item → one vector: a picture tower for each, then a pool over those present.

Letters: see `batch.py`; p items with frames, f frames of all of them together.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone


class FramePool(nn.Module):
    """Mean of each item's frames, or their weighted mean with learnt weights.

    The attention's query is zero at the start, so that both begin as the mean.
    """

    def __init__(self, width: int, *, kind: Literal["mean", "attention"]) -> None:
        super().__init__()
        self.score: nn.Linear | None = None
        if kind == "attention":
            self.score = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.score.weight)

    def forward(self, frames_fF: Tensor, item_f: Tensor) -> Tensor:
        """Frames and which of the p items each belongs to (every item has one) → [p, F]."""
        num_items = int(item_f.max()) + 1
        logit_f = frames_fF.new_zeros(len(frames_fF)).float()
        if self.score is not None:
            logit_f = self.score(frames_fF).squeeze(1).float()
        # Softmax within each item, its largest logit taken out first.
        top_p = logit_f.new_full((num_items,), float("-inf"))
        top_p = top_p.scatter_reduce(0, item_f, logit_f.detach(), reduce="amax")
        weight_f = (logit_f - top_p[item_f]).exp()
        total_p = weight_f.new_zeros(num_items).index_add(0, item_f, weight_f)
        weight_f = weight_f / total_p[item_f]
        pooled_pF = torch.zeros(num_items, frames_fF.shape[1], device=frames_fF.device)
        return pooled_pF.index_add(0, item_f, weight_f[:, None] * frames_fF.float())


class FramesBackbone(Backbone):
    """A picture tower over an item's frames."""

    def __init__(self, picture: Backbone, *, pool: Literal["mean", "attention"]) -> None:
        super().__init__()
        self.picture = picture
        self.width = picture.width
        self.pool = FramePool(self.width, kind=pool)

    def forward(self, **inputs: Tensor) -> Tensor:
        """`pixels` [f, 3, H, W] uint8 and `item` int64 [f], rising from 0 → [p, F]."""
        pooled_pF: Tensor = self.pool(self.picture(pixels=inputs["pixels"]), inputs["item"])
        return pooled_pF

    def architecture(self) -> dict[str, Any]:
        """The picture tower's."""
        return self.picture.architecture()

    def head_parameters(self) -> list[nn.Parameter]:
        """The picture tower's."""
        return self.picture.head_parameters()
