"""PNN: a deep part that sees products of fields beside the fields (Qu et al. 2016).

Shapes: B impressions, F fields, E width of a field, P pairs, X everything side by side.
"""

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class PNN(Head):
    """l_1 = relu(W_z z + W_p p + b_1) (eq. 2-3), z the fields f_i side by side.

    p are the inner products <f_i, f_j> of all pairs (IPNN), or the outer product
    f_Σ f_Σᵀ with f_Σ = Σ_i f_i, in which all pairs of fields lie over one another (OPNN).
    Both are symmetric, so p is the upper triangle, the diagonal included. W_p is a full matrix:
    the paper's rank-one factors of it save memory where there are far more fields than here.
    """

    rows_P: Tensor
    columns_P: Tensor

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.product_type = config.product_type
        side = layout.num_fields if config.product_type == "inner" else layout.field_width
        rows_P, columns_P = torch.triu_indices(side, side)
        self.register_buffer("rows_P", rows_P, persistent=False)
        self.register_buffer("columns_P", columns_P, persistent=False)
        width = layout.num_fields * layout.field_width + len(rows_P)
        self.deep = deep_part(width, config.hidden, config=config)
        self.out = nn.Linear((width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Fields and products side by side, then the deep part."""
        fields_BFE = inputs.fields_BFE
        if self.product_type == "inner":
            product_BP = (fields_BFE @ fields_BFE.mT)[:, self.rows_P, self.columns_P]
        else:
            sum_BE = fields_BFE.sum(1)
            product_BP = sum_BE[:, self.rows_P] * sum_BE[:, self.columns_P]
        x_BX = torch.cat([fields_BFE.flatten(1), product_BP], dim=1)
        logit_B: Tensor = self.out(self.deep(x_BX)).squeeze(1)
        return logit_B
