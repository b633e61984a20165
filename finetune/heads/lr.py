"""LR: logistic regression, every value of a field with a weight of its own.

Shapes: B impressions.
"""

from typing import ClassVar

from torch import Tensor

from finetune.heads.base import Head, HeadInputs


class LR(Head):
    """y = w_0 + Σ_i w_i x_i (Richardson et al. 2007); the weights lie with the fields."""

    uses_fields: ClassVar[bool] = False
    uses_first_order: ClassVar[bool] = True

    def forward(self, inputs: HeadInputs) -> Tensor:
        """The linear part, [B]."""
        return inputs.first_order_B
