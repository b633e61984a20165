"""What a user did, as a set → one unit vector. Letters: see `batch.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.user_encoder import start_from_mean


class SetPool(nn.Module):
    """One question asked of a set of events (pooling by attention, Lee et al. 2019, section 3.2).

    The question is a learnt vector plus the mean of the events, so that the result does not depend
    on their order, and an event costs a key and a value instead of a whole transformer block. As
    in `UserEncoder` the answer corrects the mean, and is all but zero at step 0.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.start_D = nn.Parameter(torch.randn(width) * 0.02)
        self.norm_in = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attended = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )  # fmt: skip
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        start_from_mean(self.out)
        self.mean_weight = nn.Parameter(torch.ones(1))  # not 0-dim: DeepSpeed cannot broadcast that

    def forward(self, events_BLD: Tensor, *, mask_BL: Tensor) -> Tensor:
        """Event vectors, anything where `mask_BL` is False → unit vectors [B, D]."""
        events_BLD = events_BLD * mask_BL[..., None]
        count_B1 = mask_BL.sum(1, keepdim=True)
        mean_BD = events_BLD.sum(1) / count_B1.clamp(min=1)
        asked_BD = self.start_D + mean_BD
        query_B1D = self.query(self.norm_in(asked_BD))[:, None]
        key_BLD, value_BLD = self.key_value(self.norm_in(events_BLD)).chunk(2, dim=-1)
        # A softmax over nothing is not a number: an empty set attends to its padding instead.
        allowed_BL = mask_BL | (count_B1 == 0)
        found_BHQD = F.scaled_dot_product_attention(
            self._by_head(query_B1D),
            self._by_head(key_BLD),
            self._by_head(value_BLD),
            attn_mask=allowed_BL[:, None, None],
        )
        hidden_BD = asked_BD + self.attended(found_BHQD.flatten(1))
        hidden_BD = hidden_BD + self.mlp(hidden_BD)
        pooled_BD = self.mean_weight * mean_BD + self.out(self.norm_out(hidden_BD))
        return F.normalize(pooled_BD.float(), dim=-1)

    def _by_head(self, rows_BLD: Tensor) -> Tensor:
        per_head = rows_BLD.shape[-1] // self.heads
        return rows_BLD.view(*rows_BLD.shape[:2], self.heads, per_head).transpose(1, 2)
