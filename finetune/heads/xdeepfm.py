"""xDeepFM: a compressed interaction network, a deep part and a linear part (Lian et al. 2018).

Shapes: B impressions, F fields, E width of a field, H feature maps of a layer.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class CIN(nn.Module):
    """X^k_h = Σ_i Σ_j W^{k,h}_ij (X^{k-1}_i ⊙ X^0_j) (eq. 6); layer k crosses k + 1 fields.

    There is no activation, which the paper found best, and every map goes both to the next layer
    and to the output.
    """

    def __init__(self, num_fields: int, num_maps: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(before * num_fields, after, bias=False)
            for before, after in pairwise((num_fields, *num_maps))
        )

    def forward(self, fields_BFE: Tensor) -> Tensor:
        """Each layer's maps summed over E (eq. 8), side by side, [B, sum of the layers' maps]."""
        x0_BEF = fields_BFE.mT
        x_BEH = x0_BEF
        pooled = []
        for layer in self.layers:
            x_BEH = layer((x_BEH[..., :, None] * x0_BEF[..., None, :]).flatten(2))
            pooled.append(x_BEH.sum(1))
        return torch.cat(pooled, dim=1)


class XDeepFM(Head):
    """y = w_linᵀ a + w_dnnᵀ x_dnn + w_cinᵀ p + b , p from a CIN; x_dnn only with hidden layers."""

    uses_first_order: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.cin = CIN(layout.num_fields, config.cin_hidden)
        self.deep: nn.Sequential | None = None
        width = sum(config.cin_hidden)
        if config.hidden:
            flat = layout.num_fields * layout.field_width
            self.deep = deep_part(flat, config.hidden, config=config)
            width += config.hidden[-1]
        self.out = nn.Linear(width, 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """One output layer over CIN and deep part."""
        parts = [self.cin(inputs.fields_BFE)]
        if self.deep is not None:
            parts.append(self.deep(inputs.fields_BFE.flatten(1)))
        logit_B: Tensor = self.out(torch.cat(parts, dim=1)).squeeze(1)
        return inputs.first_order_B + logit_B
