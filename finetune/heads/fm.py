"""FM: a factorisation machine, a linear part and all pairs of fields (Rendle 2010).

Shapes: B impressions, F fields, E width of a field.
"""

from typing import ClassVar

from torch import Tensor

from finetune.heads.base import Head, HeadInputs


def all_pairs(fields_BFE: Tensor) -> Tensor:
    """Σ_{i<j} <v_i, v_j> = (|Σ v|² - Σ |v|²) / 2, [B] (Rendle 2010, lemma 3.1)."""
    square_of_sum_BE = fields_BFE.sum(1).square()
    sum_of_squares_BE = fields_BFE.square().sum(1)
    return (square_of_sum_BE - sum_of_squares_BE).sum(1) / 2


class FM(Head):
    """y = w_0 + Σ_i w_i x_i + Σ_{i<j} <v_i, v_j> x_i x_j (eq. 1)."""

    uses_first_order: ClassVar[bool] = True

    def forward(self, inputs: HeadInputs) -> Tensor:
        """A field's vector is v_i x_i already."""
        return inputs.first_order_B + all_pairs(inputs.fields_BFE)
