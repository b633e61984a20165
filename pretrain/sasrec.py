"""SASRec on ids, as its paper has it: what a user encoder without content must be compared with.

Shapes: B sequences, L events, N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.metrics import PADDING

SASRecLoss = Literal["bce", "softmax"]


@dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """The paper's own choices (Kang & McAuley 2018, section IV-D) unless changed."""

    width: int = 50
    """D of items and states."""

    layers: int = 2
    """Attention blocks of one head."""

    length: int = 200
    """Latest events that are read; 200 for MovieLens, 50 elsewhere in the paper."""

    dropout: float = 0.2
    """0.2 for MovieLens, 0.5 for sparse data in the paper."""

    loss: SASRecLoss = "bce"
    """`bce`: one uniform negative an event, as in the paper; `softmax`: all items, which is
    stronger (Klenitskiy & Vasilev 2023)."""

    lr: float = 1e-3
    """Adam with β₂ = 0.98."""

    batch_size: int = 128
    """Sequences in a step."""

    epochs: int = 200
    """Times every user is seen; choose on validation."""

    seed: int = 0
    """Of weights, order and negatives."""

    def __post_init__(self) -> None:
        if self.loss not in get_args(SASRecLoss):
            raise ValueError(f"loss: found {self.loss!r}, expected 'bce' or 'softmax'")
        if min(self.width, self.layers, self.length, self.batch_size, self.epochs) < 1:
            raise ValueError("SASRec: width, layers, length, batch_size, epochs must be >= 1")


class SASRecBlock(nn.Module):
    """Attention, then a point-wise network, each x + dropout(g(layer norm(x))) (eq. 5-7)."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 1, dropout=dropout, batch_first=True)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width),
            nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x_BLD: Tensor, *, hidden_LL: Tensor) -> Tensor:
        """Only the query is normalised before attention, as in the authors' code."""
        found_BLD, _ = self.attention(
            self.norm_1(x_BLD), x_BLD, x_BLD, attn_mask=hidden_LL, need_weights=False
        )
        x_BLD = self.norm_1(x_BLD) + found_BLD
        x_BLD = self.norm_2(x_BLD)
        mixed_BLD: Tensor = x_BLD + self.mlp(x_BLD)
        return mixed_BLD


class SASRec(nn.Module):
    """States of a sequence; an item's score is its embedding times the last state (eq. 8)."""

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.config, self.num_items = config, num_items
        self.item = nn.Embedding(num_items + 1, config.width)  # the last one fills up
        self.position = nn.Embedding(config.length, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            SASRecBlock(config.width, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        for table in (self.item, self.position):
            nn.init.xavier_normal_(table.weight)

    def forward(self, rows_BL: Tensor) -> Tensor:
        """Item rows, oldest first, `PADDING` behind the last → states [B, L, D].

        Places are counted from the latest event, as in the paper, which fills up on the left
        (section III-A): a prediction is always made from the same place.
        """
        real_BL, length = rows_BL != PADDING, self.config.length
        filled_BL = torch.where(real_BL, rows_BL, self.num_items)
        first_B1 = length - real_BL.sum(1, keepdim=True)
        places_BL = first_B1 + torch.arange(rows_BL.shape[1], device=rows_BL.device)
        x_BLD = self.item(filled_BL) * self.config.width**0.5
        x_BLD = x_BLD + self.position(places_BL.clamp(max=length - 1))
        x_BLD = self.drop(x_BLD) * real_BL[..., None]
        hidden_LL = torch.ones(rows_BL.shape[1], rows_BL.shape[1], dtype=torch.bool).triu(1)
        for block in self.blocks:
            x_BLD = block(x_BLD, hidden_LL=hidden_LL.to(rows_BL.device))
        states_BLD: Tensor = self.norm(x_BLD)
        return states_BLD

    def loss(self, rows_BL: Tensor, *, negatives_BL: Tensor) -> Tensor:
        """Each event from those before it, mean over events."""
        states_BLD, target_BL = self(rows_BL[:, :-1]), rows_BL[:, 1:]
        real_BL = target_BL != PADDING
        if self.config.loss == "softmax":
            logits_PN = states_BLD[real_BL] @ self.item.weight[:-1].T
            return F.cross_entropy(logits_PN, target_BL[real_BL])
        wanted_BL = (states_BLD * self.item(target_BL.clamp(min=0))).sum(-1)
        unwanted_BL = (states_BLD * self.item(negatives_BL[:, 1:])).sum(-1)
        return (F.softplus(-wanted_BL) + F.softplus(unwanted_BL))[real_BL].mean()

    def fit(
        self,
        sequences: list[NDArray[np.int64]],
        *,
        after_epoch: Callable[[int], None] | None = None,
    ) -> Self:
        """Adam over users' sequences, oldest first; those of one event teach nothing.

        `after_epoch` is called with the epochs done, to look at the scores of that moment: a model
        that was trained for so many epochs alone would give just these.
        """
        config = self.config
        rows_UL = latest(sequences, length=config.length + 1)
        rows_UL = rows_UL[(rows_UL != PADDING).sum(1) > 1]
        if not len(rows_UL):
            raise ValueError("sequences: found none of two events or more, expected at least one")
        own = [set(row[row != PADDING].tolist()) for row in rows_UL]
        rng = np.random.default_rng(config.seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=config.lr, betas=(0.9, 0.98))
        for epoch in range(config.epochs):
            self.train()
            for users in np.array_split(
                rng.permutation(len(rows_UL)), -(-len(rows_UL) // config.batch_size)
            ):
                negatives = rng.integers(self.num_items, size=rows_UL[users].shape)
                for row, user in zip(negatives, users, strict=True):
                    while clash := [n for n, one in enumerate(row) if one in own[user]]:
                        if len(own[user]) >= self.num_items:
                            break
                        row[clash] = rng.integers(self.num_items, size=len(clash))
                loss = self.loss(
                    torch.from_numpy(rows_UL[users]), negatives_BL=torch.from_numpy(negatives)
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            self.eval()
            if after_epoch is not None:
                after_epoch(epoch + 1)
        return self

    @torch.inference_mode()
    def scores(self, history_BL: Tensor) -> Tensor:
        """Scores of all items after each history [B, N]; zeros after an empty one."""
        length = self.config.length
        sequences = [row[row != PADDING].numpy() for row in history_BL]
        rows_BL = torch.from_numpy(latest(sequences, length=length))
        count_B = (rows_BL != PADDING).sum(1)
        state_BD = self(rows_BL)[torch.arange(len(rows_BL)), (count_B - 1).clamp(min=0)]
        scores_BN: Tensor = state_BD @ self.item.weight[:-1].T
        return scores_BN * (count_B > 0)[:, None]


def latest(sequences: list[NDArray[np.int64]], *, length: int) -> NDArray[np.int64]:
    """The latest events of each sequence [B, length], padded behind the last."""
    rows = np.full((len(sequences), length), PADDING, np.int64)
    for place, sequence in enumerate(sequences):
        kept = sequence[-length:]
        rows[place, : len(kept)] = kept
    return rows
