"""DCN-V2: explicit crosses beside a deep part (Wang et al. 2021), in the parallel structure.

Shapes: B impressions, X all fields side by side, K experts, R rank of an expert.
"""

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class LowRankMixture(nn.Module):
    """Σ_i G_i(x) U_i g(C_i g(V_iᵀ x)) + b: DCN-Mix, in place of W x + b (section 3.5, eq. 3-4).

    G is a softmax, g is tanh. The gates add up to one, so that x_0 ⊙ and b need not be
    inside the sum.
    """

    def __init__(self, width: int, *, rank: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts)
        self.down = nn.Linear(width, num_experts * rank, bias=False)
        self.inner_KRR = nn.Parameter(torch.randn(num_experts, rank, rank) * rank**-0.5)
        self.up = nn.Linear(num_experts * rank, width)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Same shape out."""
        gate_BK1 = self.gate(x_BX).softmax(1)[..., None]
        low_BKR = self.down(x_BX).unflatten(1, (gate_BK1.shape[1], -1)).tanh()
        low_BKR = torch.einsum("bkr,krs->bks", low_BKR, self.inner_KRR).tanh()
        out_BX: Tensor = self.up((gate_BK1 * low_BKR).flatten(1))
        return out_BX


class DCNv2(Head):
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l (eq. 1), beside a deep part (figure 1b)."""

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        width = layout.num_fields * layout.field_width
        rank, num_experts = config.low_rank, config.num_experts
        self.cross = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else LowRankMixture(width, rank=rank, num_experts=num_experts)
            for _ in range(config.cross_layers)
        )
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
