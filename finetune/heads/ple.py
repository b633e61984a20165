"""PLE: progressive layered extraction, experts of a task's own beside shared ones.

Tang et al. 2020. Shapes: B impressions, X width of a layer's inputs, H width of an expert,
K experts that a gate sees, O outputs of all tasks.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from finetune.heads.base import HeadInputs, InputLayout, deep_part
from finetune.heads.mmoe import mixed
from finetune.heads.task_base import TaskHead, Towers, input_width
from finetune.settings import HeadConfig


class ExtractionLayer(nn.Module):
    """One CGC (eq. 1 to 3): a task's gate sees its own and the shared experts.

    In all but the last layer a gate of the shared part sees every expert (eq. 5 and 6).
    """

    def __init__(self, width: int, config: HeadConfig, *, num_tasks: int, is_last: bool) -> None:
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                deep_part(width, config.hidden, config=config) for _ in range(count)
            )

        self.shared = experts(config.num_experts)
        self.own = nn.ModuleList(experts(config.task_experts) for _ in range(num_tasks))
        seen = config.num_experts + config.task_experts
        self.gates = nn.ModuleList(nn.Linear(width, seen, bias=False) for _ in range(num_tasks))
        every = config.num_experts + num_tasks * config.task_experts
        self.shared_gate = None if is_last else nn.Linear(width, every, bias=False)

    def forward(self, task_BXs: list[Tensor], shared_BX: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tasks' inputs of the next layer, and the shared one's."""
        shared = [expert(shared_BX) for expert in self.shared]
        own = [
            [expert(task_BX) for expert in cast(nn.ModuleList, group)]
            for group, task_BX in zip(self.own, task_BXs, strict=True)
        ]
        task_BHs = [
            mixed(gate(task_BX), torch.stack([*mine, *shared], dim=1))
            for gate, task_BX, mine in zip(self.gates, task_BXs, own, strict=True)
        ]
        if self.shared_gate is None:
            return task_BHs, shared_BX
        every_BKH = torch.stack([one for group in (*own, shared) for one in group], dim=1)
        return task_BHs, mixed(self.shared_gate(shared_BX), every_BKH)


class PLE(TaskHead):
    """y_k = t^k(g^{k,N}(x)) (eq. 4 and 7), N extraction layers."""

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        super().__init__(config, layout, num_outputs=num_outputs)
        width = input_width(layout)
        last = config.extraction_layers - 1
        layers = []
        for number in range(config.extraction_layers):
            layers.append(
                ExtractionLayer(width, config, num_tasks=len(num_outputs), is_last=number == last)
            )
            width = (width, *config.hidden)[-1]
        self.layers = nn.ModuleList(layers)
        self.towers = Towers(width, config, num_outputs=num_outputs)

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """As the towers do."""
        self.towers.begin_at(outputs)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """The first layer gives every part the fields."""
        shared_BX = inputs.fields_BFE.flatten(1)
        task_BXs = [shared_BX] * len(self.towers.towers)
        for layer in self.layers:
            task_BXs, shared_BX = layer(task_BXs, shared_BX)
        out_BO: Tensor = self.towers(task_BXs)
        return out_BO
