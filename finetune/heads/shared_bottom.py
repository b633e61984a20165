"""Shared bottom: one deep part for all tasks, a tower for each (Caruana 1997).

Shapes: B impressions, H width of the bottom, O outputs of all tasks.
"""

from collections.abc import Sequence

from torch import Tensor

from finetune.heads.base import HeadInputs, InputLayout, deep_part
from finetune.heads.task_base import TaskHead, Towers, input_width
from finetune.settings import HeadConfig


class SharedBottom(TaskHead):
    """y_k = h^k(f(x)) (Ma et al. 2018, eq. 1)."""

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        super().__init__(config, layout, num_outputs=num_outputs)
        width = input_width(layout)
        self.bottom = deep_part(width, config.hidden, config=config)
        self.towers = Towers((width, *config.hidden)[-1], config, num_outputs=num_outputs)

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """As the towers do."""
        self.towers.begin_at(outputs)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Every tower reads the same bottom."""
        bottom_BH = self.bottom(inputs.fields_BFE.flatten(1))
        out_BO: Tensor = self.towers([bottom_BH] * len(self.towers.towers))
        return out_BO
