"""DeepFM: a factorisation machine and a deep part on the same vectors (Guo et al. 2017).

Shapes: B impressions, F fields, E width of a field.
"""

from typing import ClassVar

from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class DeepFM(Head):
    """y = y_FM + y_DNN (eq. 1), y_FM = <w, x> + Σ_{i<j} <v_i, v_j> x_i x_j (eq. 2)."""

    uses_first_order: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        width = layout.num_fields * layout.field_width
        self.deep = deep_part(width, config.hidden, config=config)
        self.out = nn.Linear((width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Pairs by Σ_{i<j} <v_i, v_j> = (|Σ v|² - Σ |v|²) / 2 (Rendle 2010, lemma 3.1)."""
        fields_BFE = inputs.fields_BFE
        square_of_sum_BE = fields_BFE.sum(1).square()
        sum_of_squares_BE = fields_BFE.square().sum(1)
        pairs_B = (square_of_sum_BE - sum_of_squares_BE).sum(1) / 2
        deep_B: Tensor = self.out(self.deep(fields_BFE.flatten(1))).squeeze(1)
        return inputs.first_order_B + pairs_B + deep_B
