"""Two arms: one label with and without a treatment, whose difference is the uplift.

Shapes: B impressions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.heads.base import HeadInputs, InputLayout
from finetune.heads.task_base import TaskHead, input_width, set_bias
from finetune.settings import HeadConfig
from finetune.uplift import TwoHeads


class TwoArms(TaskHead):
    """h_0(Φ(x)) and h_1(Φ(x)) (TARNet, Shalit et al. 2017); see finetune/uplift.py."""

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        super().__init__(config, layout, num_outputs=num_outputs)
        if list(num_outputs) != [1]:
            raise ValueError(
                f"head.name: found two_arms with {len(num_outputs)} tasks of {list(num_outputs)} "
                "outputs, expected one label by bce or mse; give one task"
            )
        self.arms = TwoHeads(
            input_width(layout),
            shared=config.hidden,
            head=config.tower_hidden,
            dropout=config.dropout,
        )

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """Both arms at the same, so that the uplift begins near zero."""
        for arm in (self.arms.control, self.arms.treated):
            set_bias(arm[-1], outputs[0])

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Outputs in control and treated, [B, 2]."""
        arms = self.arms(inputs.fields_BFE.flatten(1))
        return torch.stack([arms.control_B, arms.treated_B], dim=1)
