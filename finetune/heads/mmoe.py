"""MMoE: multi-gate mixture of experts (Ma et al. 2018).

Shapes: B impressions, X all fields side by side, H width of an expert, K experts, O outputs of all
tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.heads.base import HeadInputs, InputLayout, deep_part
from finetune.heads.task_base import TaskHead, Towers, input_width
from finetune.settings import HeadConfig


class MMoE(TaskHead):
    """y_k = h^k(Σ_i g^k(x)_i f_i(x)), g^k(x) = softmax(W_gk x) (eq. 6 and 7)."""

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        super().__init__(config, layout, num_outputs=num_outputs)
        width = input_width(layout)
        self.experts = nn.ModuleList(
            deep_part(width, config.hidden, config=config) for _ in range(config.num_experts)
        )
        self.gates = nn.ModuleList(
            nn.Linear(width, config.num_experts, bias=False) for _ in num_outputs
        )
        self.towers = Towers((width, *config.hidden)[-1], config, num_outputs=num_outputs)

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """As the towers do."""
        self.towers.begin_at(outputs)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Every task mixes the same experts by a gate of its own."""
        x_BX = inputs.fields_BFE.flatten(1)
        expert_BKH = torch.stack([expert(x_BX) for expert in self.experts], dim=1)
        out_BO: Tensor = self.towers([mixed(gate(x_BX), expert_BKH) for gate in self.gates])
        return out_BO


def mixed(gate_BK: Tensor, expert_BKH: Tensor) -> Tensor:
    """Experts weighed by the softmax of a gate, [B, H]."""
    return torch.einsum("bk,bkh->bh", gate_BK.softmax(1), expert_BKH)
