"""ESMM: a click and what follows it, over all impressions (Ma et al. 2018, entire space model).

Shapes: B impressions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.heads.base import HeadInputs, InputLayout
from finetune.heads.task_base import TaskHead, Towers, input_width
from finetune.position_bias import logit_of_product
from finetune.settings import HeadConfig

_MOST = 0.999  # of what a click leads to, at first


class ESMM(TaskHead):
    """P(click and conversion) = P(click) P(conversion | click) (eq. 1 and 3), vectors shared.

    The first task is the click, the second the click that converted: 1 only where the first is.
    The chance of a conversion after a click is the second prediction over the first.
    """

    def __init__(
        self, config: HeadConfig, layout: InputLayout, *, num_outputs: Sequence[int]
    ) -> None:
        super().__init__(config, layout, num_outputs=num_outputs)
        if list(num_outputs) != [1, 1]:
            raise ValueError(
                f"head.name: found esmm with {len(num_outputs)} tasks of {list(num_outputs)} "
                "outputs, expected two binary ones: the click, and what follows it; give tasks"
            )
        self.towers = Towers(input_width(layout), config, num_outputs=num_outputs)

    def begin_at(self, outputs: Sequence[Sequence[float]]) -> None:
        """The second tower at the chance of a conversion after a click."""
        (click,), (both,) = outputs
        after = min(_chance(both) / _chance(click), _MOST)
        self.towers.begin_at([[click], [math.log(after / (1 - after))]])

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Logits of the click, and of the click and the conversion, [B, 2]."""
        x_BX = inputs.fields_BFE.flatten(1)
        click_B, after_B = self.towers([x_BX, x_BX]).unbind(1)
        return torch.stack([click_B, logit_of_product(click_B, after_B)], dim=1)


def _chance(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))
