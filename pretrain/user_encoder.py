"""What a user did → one unit vector for every moment of it. Letters: see `batch.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MS_PER_HOUR = 3_600_000
NUM_GAP_BUCKETS = 16


@dataclass(frozen=True, kw_only=True)
class UserEncoderConfig:
    """A causal transformer over the history (SASRec, Kang & McAuley 2018)."""

    layers: int = 2
    """Transformer blocks."""

    heads: int = 4
    """Attention heads; must divide the shared width."""

    dropout: float = 0.1
    """Dropout in the blocks."""

    history_length: int = 50
    """Latest events of a user that are read."""

    order: Literal["time", "set"] = "time"
    """`time`: events in order, with positions and time gaps; `set`: order unknown (a basket)."""

    pooling: Literal["blocks", "question"] = "blocks"
    """How a set is read: by the blocks, or by one question asked of all events (`SetPool`; `layers`
    then says nothing). Cheaper, and better on baskets of a few items."""

    def __post_init__(self) -> None:
        if self.layers < 0 or self.heads < 1 or self.history_length < 1:
            raise ValueError(
                "user encoder: layers must be >= 0, heads and history_length >= 1, got "
                f"{self.layers}, {self.heads}, {self.history_length}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"user encoder: dropout must be in [0, 1), got {self.dropout}")
        if self.pooling == "question" and self.order != "set":
            raise ValueError(
                f"user encoder: pooling is 'question' and order {self.order!r}; a question is "
                "asked of a set, so that order must be 'set'"
            )


class Block(nn.Module):
    """Pre-norm attention and MLP on PyTorch's scaled dot-product attention."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BSD: Tensor, *, allowed_BSS: Tensor) -> Tensor:
        """Attend where `allowed_BSS` is True."""
        q, k, v = self.qkv(self.norm_1(x_BSD)).unflatten(-1, (3, self.heads, -1)).unbind(2)
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


class UserEncoder(nn.Module):
    """States 0 … L of a user: state s has seen the first s events, state 0 none.

    A state is a learnt correction on the mean of the item vectors seen: an untrained encoder is
    content kNN, and training can only move away from it where that pays.
    """

    def __init__(self, config: UserEncoderConfig, *, width: int) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"user encoder: {config.heads} heads do not divide width {width}")
        self.config = config
        self.start_D = nn.Parameter(torch.randn(width) * 0.02)
        self.position_SD = nn.Parameter(torch.randn(config.history_length + 1, width) * 0.02)
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, width)
        nn.init.normal_(self.gap.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.mean_weight = nn.Parameter(torch.ones(1))  # not 0-dim: DeepSpeed cannot broadcast that
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, events_BLD: Tensor, *, mask_BL: Tensor, times_BL: Tensor) -> Tensor:
        """Event vectors in time order → unit states [B, L + 1, D].

        Args:
            events_BLD: one vector an event, anything where masked.
            mask_BL: True where there is an event; events come first, padding last.
            times_BL: unix milliseconds.
        """
        in_time = self.config.order == "time"
        events_BLD = events_BLD * mask_BL[..., None]
        start_B1D = self.start_D.expand(len(events_BLD), 1, -1)
        x_BSD = torch.cat([start_B1D.to(events_BLD.dtype), events_BLD], dim=1)
        seen_BS = F.pad(mask_BL, (1, 0), value=True)
        num_states = x_BSD.shape[1]
        allowed_BSS = seen_BS[:, None, :].expand(-1, num_states, -1)
        if in_time:
            gap_BLD = self.gap(self._gap_buckets(times_BL))
            x_BSD = x_BSD + self.position_SD[:num_states] + F.pad(gap_BLD, (0, 0, 1, 0))
            causal_SS = torch.ones(num_states, num_states, dtype=torch.bool, device=x_BSD.device)
            allowed_BSS = allowed_BSS & causal_SS.tril()
        for block in self.blocks:
            x_BSD = block(x_BSD, allowed_BSS=allowed_BSS)
        mean_BSD = self._mean_seen(events_BLD, seen_BS, in_time=in_time)
        return F.normalize(
            (self.mean_weight * mean_BSD + self.out(self.norm(x_BSD))).float(), dim=-1
        )

    def _mean_seen(self, events_BLD: Tensor, seen_BS: Tensor, *, in_time: bool) -> Tensor:
        """Mean of the item vectors that each state has seen, zeros for state 0."""
        padded_BSD = F.pad(events_BLD, (0, 0, 1, 0)).float()
        count_BS = (seen_BS.cumsum(1) - 1).clamp(min=1)
        if in_time:
            return padded_BSD.cumsum(1) / count_BS[..., None]
        return (padded_BSD.sum(1) / count_BS[:, -1:]).unsqueeze(1).expand_as(padded_BSD)

    @staticmethod
    def _gap_buckets(times_BL: Tensor) -> Tensor:
        """Hours since the event before, as log2 buckets; 0 for the first."""
        gap_BL = F.pad(times_BL[:, 1:] - times_BL[:, :-1], (1, 0)).clamp(min=0)
        hours_BL = gap_BL.double() / MS_PER_HOUR
        return (hours_BL + 1).log2().long().clamp(max=NUM_GAP_BUCKETS - 1)
