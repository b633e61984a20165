"""Heads of several labels: `HeadInputs` in, the outputs of every task side by side out.

Shapes: B impressions, X all fields side by side, O outputs of all tasks, H width of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from finetune.heads.base import HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class TaskHead(nn.Module, ABC):
    """Fields to the outputs of every task; the history's mean is one of the fields."""

    uses_fields: ClassVar[bool] = True
    uses_history: ClassVar[bool] = False
    uses_first_order: ClassVar[bool] = False

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        """Set up the head.

        Args:
            config: widths and counts.
            layout: what comes in.
            num_outputs: outputs of each task.
        """
        super().__init__()

    @abstractmethod
    def forward(self, inputs: HeadInputs) -> Tensor:
        """Outputs of every task side by side, [B, O]."""

    @abstractmethod
    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """Begin training at these outputs of each task, by the last layers' biases."""


class Towers(nn.Module):
    """A tower of layers of its own for each task."""

    def __init__(self, width: int, config: HeadConfig, *, num_outputs: Sequence[int]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(
                *deep_part(width, config.tower_hidden, config=config),
                nn.Linear((width, *config.tower_hidden)[-1], outputs),
            )
            for outputs in num_outputs
        )

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """Set the biases of the last layers."""
        for tower, values in zip(self.towers, outputs, strict=True):
            set_bias(cast(nn.Sequential, tower)[-1], values)

    def forward(self, task_BHs: Sequence[Tensor]) -> Tensor:
        """Outputs from one input a task, [B, O]."""
        pairs = zip(self.towers, task_BHs, strict=True)
        return torch.cat([tower(task_BH) for tower, task_BH in pairs], dim=1)


@torch.no_grad()
def set_bias(layer: nn.Module, values: Sequence[float]) -> None:
    """Set the bias of a linear layer."""
    assert isinstance(layer, nn.Linear)
    layer.bias.copy_(torch.tensor(values))


def input_width(layout: InputLayout) -> int:
    """Width of all fields side by side."""
    return layout.num_fields * layout.field_width
