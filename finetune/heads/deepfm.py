"""DeepFM: a factorisation machine and a deep part on the same vectors (Guo et al. 2017).

Shapes: B impressions.
"""

from typing import ClassVar

from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.heads.fm import all_pairs
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
        """Linear part, pairs and deep part, added."""
        deep_B: Tensor = self.out(self.deep(inputs.fields_BFE.flatten(1))).squeeze(1)
        return inputs.first_order_B + all_pairs(inputs.fields_BFE) + deep_B
