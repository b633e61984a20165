"""DCN-V2: explicit crosses beside a deep part (Wang et al. 2021), in the parallel structure.

Shapes: B impressions, X all fields side by side.
"""

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class DCNv2(Head):
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l (eq. 1), beside a deep part (figure 1b)."""

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        width = layout.num_fields * layout.field_width
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        self.deep = deep_part(width, config.hidden, config=config)
        self.out = nn.Linear(width + (width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Crosses and deep part side by side, one output layer over both."""
        x0_BX = inputs.fields_BFE.flatten(1)
        x_BX = x0_BX
        for layer in self.cross:
            x_BX = x0_BX * layer(x_BX) + x_BX
        logit_B: Tensor = self.out(torch.cat([x_BX, self.deep(x0_BX)], dim=1)).squeeze(1)
        return logit_B
