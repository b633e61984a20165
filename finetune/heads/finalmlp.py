"""FinalMLP: two deep parts, each with a gate of its own, and a bilinear fusion (Mao et al. 2023).

Shapes: B impressions, E width of a field, X all fields side by side, K heads of the fusion,
I and J widths of a head in the first and the second stream.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class Gate(nn.Module):
    """2 σ(g), g = MLP(x): the weight of every input of a stream, about one at first."""

    def __init__(self, width: int, hidden: tuple[int, ...], *, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((width, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear((width, *hidden)[-1], out))

    def forward(self, x_BE: Tensor) -> Tensor:
        """Weights [B, X]."""
        weight_BX: Tensor = 2 * torch.sigmoid(self.net(x_BE))
        return weight_BX


class BilinearFusion(nn.Module):
    """b + w_1ᵀ o_1 + w_2ᵀ o_2 + Σ_k o_1kᵀ W_k o_2k over K heads, slices of both streams."""

    def __init__(self, first: int, second: int, *, num_heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(first + second, 1)
        product_KIJ = torch.randn(num_heads, first // num_heads, second // num_heads)
        self.product_KIJ = nn.Parameter(product_KIJ * product_KIJ.numel() ** -0.5)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits [B] of the streams' outputs."""
        num_heads = len(self.product_KIJ)
        first_BKI = first.view(len(first), num_heads, -1)
        second_BKJ = second.view(len(second), num_heads, -1)
        product_B = torch.einsum("bki,kij,bkj->b", first_BKI, self.product_KIJ, second_BKJ)
        linear_B: Tensor = self.linear(torch.cat([first, second], dim=1)).squeeze(1)
        return linear_B + product_B


class FinalMLP(Head):
    """y = fusion(MLP_1(2 σ(g_1) ⊙ e), MLP_2(2 σ(g_2) ⊙ e)), e all fields side by side.

    The paper leaves open what a gate sees, so long as the streams differ: here the user's id for
    the first stream, the item's for the second.
    """

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.user_field, self.item_field = layout.user_field, layout.item_field
        width = layout.num_fields * layout.field_width
        hidden = config.hidden, config.second_hidden or config.hidden
        self.first_gate = Gate(layout.field_width, config.gate_hidden, out=width)
        self.second_gate = Gate(layout.field_width, config.gate_hidden, out=width)
        self.first = deep_part(width, hidden[0], config=config)
        self.second = deep_part(width, hidden[1], config=config)
        self.fusion = BilinearFusion(hidden[0][-1], hidden[1][-1], num_heads=config.num_heads)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Two views of the same fields, fused."""
        x_BX = inputs.fields_BFE.flatten(1)
        first = self.first(self.first_gate(inputs.fields_BFE[:, self.user_field]) * x_BX)
        second = self.second(self.second_gate(inputs.fields_BFE[:, self.item_field]) * x_BX)
        logit_B: Tensor = self.fusion(first, second)
        return logit_B
