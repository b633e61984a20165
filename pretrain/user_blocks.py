"""Layers of the user encoder: SASRec's attention and HSTU's. Letters: see `batch.py`; H heads.

Both can fuse side information as NOVA does (Liu et al. 2021, arXiv 2103.03578, section 3.2): it
takes part in queries and keys, so in who attends to whom, while values stay pure item vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_TIME_BUCKETS = 40
MS_PER_SECOND = 1000


class Block(nn.Module):
    """Pre-norm attention and MLP on PyTorch's scaled dot-product attention."""

    def __init__(self, width: int, *, heads: int, dropout: float, nova: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_1 = nn.LayerNorm(width)
        if nova:
            self.side_norm = nn.LayerNorm(width)
            self.qk, self.v = nn.Linear(width, 2 * width), nn.Linear(width, width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(
        self,
        x_BSD: Tensor,
        *,
        allowed_BSS: Tensor,
        side_BSD: Tensor | None = None,
        times_BS: Tensor | None = None,
    ) -> Tensor:
        """Attend where `allowed_BSS` is True; `side_BSD` is given with `nova` only."""
        if side_BSD is None:
            joint = self.qkv(self.norm_1(x_BSD))
        else:
            queries_keys = self.qk(self.side_norm(x_BSD + side_BSD))
            joint = torch.cat([queries_keys, self.v(self.norm_1(x_BSD))], dim=-1)
        q, k, v = joint.unflatten(-1, (3, self.heads, -1)).unbind(2)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=allowed_BSS[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        x_BSD = x_BSD + self.out(attended.transpose(1, 2).flatten(-2))
        x_BSD = x_BSD + self.mlp(self.norm_2(x_BSD))
        return x_BSD


class HstuBlock(nn.Module):
    """Gated pointwise attention (HSTU, Zhai et al. 2024, arXiv 2402.17152, eqs. 1 to 3).

    U, V, Q, K = silu(linear(norm(x)));  A = silu(Q Kᵀ + bias) / S;  y = x + linear(norm(A V) · U).
    The bias has a part for the distance in places and one for that in time, on a log scale. There
    is no softmax: how much of something a user did is kept, not only its share. PyTorch's fused
    attention is always a softmax, so A is a plain product in memory, [B, H, S, S].
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        dropout: float,
        num_states: int,
        in_time: bool,
        nova: bool = False,
    ) -> None:
        """`num_states` is the largest S, by which A is divided whatever the batch's own."""
        super().__init__()
        self.heads, self.num_states = heads, num_states
        self.norm_1 = nn.LayerNorm(width)
        self.side_norm = nn.LayerNorm(width) if nova else None
        self.uv, self.qk = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.place_bias = nn.Embedding(num_states, heads) if in_time else None
        self.time_bias = nn.Embedding(NUM_TIME_BUCKETS, heads) if in_time else None
        for bias in (self.place_bias, self.time_bias):
            if bias is not None:
                nn.init.normal_(bias.weight, std=0.02)
        self.norm_2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x_BSD: Tensor,
        *,
        allowed_BSS: Tensor,
        side_BSD: Tensor | None = None,
        times_BS: Tensor | None = None,
    ) -> Tensor:
        """Attend where `allowed_BSS` is True; `times_BS` in unix milliseconds."""
        plain_BSD = self.norm_1(x_BSD)
        if side_BSD is None:
            queried_BSD = plain_BSD
        else:
            assert self.side_norm is not None
            queried_BSD = self.side_norm(x_BSD + side_BSD)
        u, v = F.silu(self.uv(plain_BSD)).chunk(2, dim=-1)
        q, k = F.silu(self.qk(queried_BSD)).chunk(2, dim=-1)
        q, k, v = (self._split(part) for part in (q, k, v))
        score_BHSS = q @ k.transpose(-1, -2)
        if self.place_bias is not None and self.time_bias is not None:
            assert times_BS is not None
            places_S = torch.arange(x_BSD.shape[1], device=x_BSD.device)
            distance_SS = (places_S[:, None] - places_S).abs()
            bias_BSSH = self.place_bias(distance_SS) + self.time_bias(time_buckets(times_BS))
            score_BHSS = score_BHSS + bias_BSSH.permute(0, 3, 1, 2)
        weight_BHSS = F.silu(score_BHSS) / self.num_states * allowed_BSS[:, None]
        attended_BSD = (weight_BHSS @ v).transpose(1, 2).flatten(-2)
        gated: Tensor = self.out(self.dropout(self.norm_2(attended_BSD) * u))
        return x_BSD + gated

    def _split(self, part_BSD: Tensor) -> Tensor:
        """[B, S, D] → [B, H, S, D / H]."""
        width = part_BSD.shape[-1] // self.heads
        return part_BSD.view(*part_BSD.shape[:2], self.heads, width).transpose(1, 2)


def time_buckets(times_BS: Tensor) -> Tensor:
    """[B, S, S] log2 of the seconds between any two moments, 0 below two seconds."""
    seconds_BSS = (times_BS[:, :, None] - times_BS[:, None, :]).abs() / MS_PER_SECOND
    return seconds_BSS.double().clamp(min=1).log2().long().clamp(max=NUM_TIME_BUCKETS - 1)
