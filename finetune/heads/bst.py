"""BST: a transformer over the history and the target (Chen et al. 2019).

Shapes: B impressions, L history length, T = L + 1 tokens, the target last, D width of a token,
Q tokens that attend, X everything side by side.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig

_INIT_STD = 0.01  # that of the items' vectors, which the positions stand beside


class TransformerLayer(nn.Module):
    """S' = LayerNorm(S + Dropout(MH(S))), F = LayerNorm(S' + Dropout(FFN(S'))) (eq. 5-6).

    FFN(x) = LeakyReLU(x W_1 + b_1) W_2 + b_2, four times as wide inside, as is usual.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.LeakyReLU(), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query_BQD: Tensor, token_BTD: Tensor, padding_BT: Tensor) -> Tensor:
        """New vectors of the tokens that attend, [B, Q, D]."""
        attended_BQD, _ = self.attention(
            query_BQD, token_BTD, token_BTD, key_padding_mask=padding_BT, need_weights=False
        )
        s_BQD = self.norms[0](query_BQD + self.dropout(attended_BQD))
        out_BQD: Tensor = self.norms[1](s_BQD + self.dropout(self.feed_forward(s_BQD)))
        return out_BQD


class BST(Head):
    """The transformer's output at the target goes into the deep part (section 2.3).

    A token is an item beside its position. The paper's position is the time that has passed since
    the item; inputs have no times, so here it is the item's rank, counted from the latest one.
    """

    uses_history: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.position = nn.Embedding(layout.history_length + 1, layout.field_width)
        nn.init.normal_(self.position.weight, std=_INIT_STD)
        token_width = layout.history_width + layout.field_width
        self.layers = nn.ModuleList(
            TransformerLayer(token_width, num_heads=config.num_heads, dropout=config.dropout)
            for _ in range(config.transformer_layers)
        )
        width = layout.num_fields * layout.field_width + token_width
        self.deep = deep_part(width, config.hidden, config=config, activation=nn.LeakyReLU)
        self.out = nn.Linear((width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """In the last layer only the target attends, since nothing else is read."""
        padding_BT = nn.functional.pad(~inputs.history_mask_BL, (0, 1))
        # 0 the target, 1 the latest item, and so on; padding has any.
        rank_BT = (~padding_BT).flip(1).cumsum(1).flip(1) - 1
        item_BTH = torch.cat([inputs.history_BLH, inputs.target_BH[:, None]], dim=1)
        token_BTD = torch.cat([item_BTH, self.position(rank_BT)], dim=2)
        for layer in self.layers[:-1]:
            token_BTD = layer(token_BTD, token_BTD, padding_BT)
        target_BD = self.layers[-1](token_BTD[:, -1:], token_BTD, padding_BT).squeeze(1)
        x_BX = torch.cat([inputs.fields_BFE.flatten(1), target_BD], dim=1)
        logit_B: Tensor = self.out(self.deep(x_BX)).squeeze(1)
        return logit_B
