"""DIN: the history is pooled by how much each item speaks to the target (Zhou et al. 2018).

Shapes: B impressions, F fields, E width of a field, L history length, H width of a history item,
X everything side by side.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class ActivationUnit(nn.Module):
    """a(e_j, v_A): the weight of a history item for a target, by a small network (figure 2).

    It sees both, their difference and their product, as the authors' published code does in
    place of the outer product drawn in the paper.
    """

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((4 * width, *hidden)):
            layers += [nn.Linear(before, after), nn.PReLU()]
        self.net = nn.Sequential(*layers, nn.Linear((4 * width, *hidden)[-1], 1))

    def forward(self, target_BH: Tensor, history_BLH: Tensor) -> Tensor:
        """Weights [B, L]; not normalised, so that the strength of an interest is kept."""
        target_BLH = target_BH[:, None].expand_as(history_BLH)
        pair = [history_BLH, target_BLH, history_BLH - target_BLH, history_BLH * target_BLH]
        weight_BL: Tensor = self.net(torch.cat(pair, dim=-1)).squeeze(-1)
        return weight_BL


class DIN(Head):
    """v_U(A) = Σ_j a(e_j, v_A) e_j (eq. 3), then a deep part with Dice (section 5.3)."""

    uses_history: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.attention = ActivationUnit(layout.history_width, config.attention_hidden)
        width = layout.num_fields * layout.field_width + layout.history_width
        self.deep = deep_part(width, config.hidden, config=config, activation=None)
        self.out = nn.Linear((width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Padding weighs nothing, so an empty history pools to zero."""
        weight_BL = self.attention(inputs.target_BH, inputs.history_BLH)
        weight_BL = weight_BL * inputs.history_mask_BL
        interest_BH = torch.einsum("bl,blh->bh", weight_BL, inputs.history_BLH)
        x_BX = torch.cat([inputs.fields_BFE.flatten(1), interest_BH], dim=1)
        logit_B: Tensor = self.out(self.deep(x_BX)).squeeze(1)
        return logit_B
