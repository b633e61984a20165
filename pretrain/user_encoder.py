"""What a user did → one unit vector for every moment of it. Letters: see `batch.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.user_blocks import Block, HstuBlock
from pretrain.user_features import UserColumn, UserFeatures

MS_PER_HOUR = 3_600_000
NUM_GAP_BUCKETS = 16


@dataclass(frozen=True, kw_only=True)
class UserEncoderConfig:
    """A causal encoder of the history: SASRec (Kang & McAuley 2018) or HSTU (Zhai et al. 2024)."""

    attention: Literal["sasrec", "hstu"] = "sasrec"
    """`sasrec`: softmax attention and an MLP; `hstu`: gated attention without a softmax, which
    sees the distances in place and time of any two events."""

    fusion: Literal["add", "nova"] = "add"
    """How places, time gaps and user features meet the item vectors: added to them, or as in NOVA
    only to queries and keys, so that values stay pure."""

    features: tuple[str, ...] = ()
    """Feature columns of users.parquet (categorical, numeric) that the encoder reads."""

    layers: int = 2
    """Blocks."""

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
        object.__setattr__(self, "features", tuple(self.features))  # a list where JSON was read
        if self.layers < 0 or self.heads < 1 or self.history_length < 1:
            raise ValueError(
                "user encoder: layers must be >= 0, heads and history_length >= 1, got "
                f"{self.layers}, {self.heads}, {self.history_length}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"user encoder: dropout must be in [0, 1), got {self.dropout}")
        if self.pooling == "question" and (self.order != "set" or self.features):
            raise ValueError(
                f"user encoder: pooling is 'question', order {self.order!r} and features "
                f"{list(self.features)}; a question is asked of a set of events alone, so that "
                "order must be 'set' and features empty"
            )


def start_from_mean(out: nn.Linear) -> None:
    """Make the correction of a mean next to nothing: a vector of length 0.001 √D, for all users.

    Not zero, since a state that has seen nothing must have a direction: the gradient of the unit
    vector is its inverse length.
    """
    nn.init.zeros_(out.weight)
    nn.init.normal_(out.bias, std=1e-3)


class UserEncoder(nn.Module):
    """States 0 … L of a user: state s has seen the first s events, state 0 none.

    A state is a learnt correction on the mean of the item vectors seen. The correction is all but
    zero at step 0, so that training starts from content kNN.
    """

    def __init__(
        self, config: UserEncoderConfig, *, width: int, columns: Sequence[UserColumn] = ()
    ) -> None:
        """`columns` are those of `config.features`, with their vocabularies."""
        super().__init__()
        if tuple(column.name for column in columns) != config.features:
            raise ValueError(
                f"user encoder: found columns {[column.name for column in columns]}, expected "
                f"{list(config.features)}; fit them with fit_user_columns"
            )
        if width % config.heads:
            raise ValueError(f"user encoder: {config.heads} heads do not divide width {width}")
        self.config = config
        self.start_D = nn.Parameter(torch.randn(width) * 0.02)
        self.position_SD = nn.Parameter(torch.randn(config.history_length + 1, width) * 0.02)
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, width)
        nn.init.normal_(self.gap.weight, std=0.02)
        self.features = UserFeatures(columns, width=width) if columns else None
        self.blocks = nn.ModuleList(self._block(width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.mean_weight = nn.Parameter(torch.ones(1))  # not 0-dim: DeepSpeed cannot broadcast that
        start_from_mean(self.out)

    def _block(self, width: int) -> nn.Module:
        config = self.config
        nova = config.fusion == "nova"
        if config.attention == "sasrec":
            return Block(width, heads=config.heads, dropout=config.dropout, nova=nova)
        return HstuBlock(
            width,
            heads=config.heads,
            dropout=config.dropout,
            num_states=config.history_length + 1,
            in_time=config.order == "time",
            nova=nova,
        )

    def forward(
        self,
        events_BLD: Tensor,
        *,
        mask_BL: Tensor,
        times_BL: Tensor,
        users_BC: Tensor | None = None,
    ) -> Tensor:
        """Event vectors in time order → unit states [B, L + 1, D].

        Args:
            events_BLD: one vector an event, anything where masked.
            mask_BL: True where there is an event; events come first, padding last.
            times_BL: unix milliseconds.
            users_BC: the users' features, see `user_features.py`; state 0 is their token, whatever
                the fusion, so that users without a history are told apart too.
        """
        in_time, nova = self.config.order == "time", self.config.fusion == "nova"
        events_BLD = events_BLD * mask_BL[..., None]
        start_B1D = self.start_D.expand(len(events_BLD), 1, -1)
        side_BSD = start_B1D.new_zeros(1, 1, 1)
        if self.features is not None:
            assert users_BC is not None, "user features"
            side_BSD = self.features(users_BC)[:, None]
            start_B1D = start_B1D + side_BSD
        x_BSD = torch.cat([start_B1D.to(events_BLD.dtype), events_BLD], dim=1)
        seen_BS = F.pad(mask_BL, (1, 0), value=True)
        num_states = x_BSD.shape[1]
        allowed_BSS = seen_BS[:, None, :].expand(-1, num_states, -1)
        if in_time:
            gap_BLD = self.gap(self._gap_buckets(times_BL))
            moments_BSD = self.position_SD[:num_states] + F.pad(gap_BLD, (0, 0, 1, 0))
            if nova:
                side_BSD = side_BSD + moments_BSD
            else:
                x_BSD = x_BSD + moments_BSD
            causal_SS = torch.ones(num_states, num_states, dtype=torch.bool, device=x_BSD.device)
            allowed_BSS = allowed_BSS & causal_SS.tril()
        # State 0 is at the moment of the first event; no state sees a later moment than its own.
        times_BS = torch.cat([times_BL[:, :1], times_BL], dim=1)
        for block in self.blocks:
            x_BSD = block(
                x_BSD,
                allowed_BSS=allowed_BSS,
                side_BSD=side_BSD if nova else None,
                times_BS=times_BS,
            )
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
