"""FM: a factorisation machine, a linear part and all pairs of fields (Rendle 2010).

Shapes: B impressions, F fields, E width of a field.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetune.heads.base import Head, HeadInputs


class _AllPairs(torch.autograd.Function):
    """The sum of all pairs; autograd's own way would walk the fields nine times, this one five."""

    @staticmethod
    def forward(ctx: Any, fields_BFE: Tensor) -> Tensor:  # noqa: ANN401
        sum_BE = fields_BFE.sum(1)
        ctx.save_for_backward(fields_BFE, sum_BE)
        squares_B = torch.linalg.vector_norm(fields_BFE.flatten(1), dim=1).square()
        pairs_B: Tensor = (sum_BE.square().sum(1) - squares_B) / 2
        return pairs_B

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_B: Tensor) -> Tensor:  # noqa: ANN401
        """A field's derivative is the sum of all others."""
        fields_BFE, sum_BE = ctx.saved_tensors
        grad_B11 = grad_B[:, None, None]
        return torch.addcmul(sum_BE[:, None] * grad_B11, fields_BFE, grad_B11, value=-1)


def all_pairs(fields_BFE: Tensor) -> Tensor:
    """Σ_{i<j} <v_i, v_j> = (|Σ v|² - Σ |v|²) / 2, [B] (Rendle 2010, lemma 3.1)."""
    pairs_B: Tensor = _AllPairs.apply(fields_BFE)
    return pairs_B


class FM(Head):
    """y = w_0 + Σ_i w_i x_i + Σ_{i<j} <v_i, v_j> x_i x_j (eq. 1)."""

    uses_first_order: ClassVar[bool] = True

    def forward(self, inputs: HeadInputs) -> Tensor:
        """A field's vector is v_i x_i already."""
        return inputs.first_order_B + all_pairs(inputs.fields_BFE)
