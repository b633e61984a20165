"""AutoInt: fields attend to fields, beside a deep part (Song et al. 2019).

Shapes: B impressions, F fields, W width of a field in a layer, N attention heads, A width of one.
"""

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class InteractingLayer(nn.Module):
    """e_m → relu(⊕_h Σ_k α_mk^h V^h e_k + R e_m), α_mk^h = softmax_k <Q^h e_m, K^h e_k> (eq. 5-8).

    The scores are not divided by the root of their width.
    """

    def __init__(self, width: int, *, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        out = num_heads * head_width
        self.query = nn.Linear(width, out, bias=False)
        self.key = nn.Linear(width, out, bias=False)
        self.value = nn.Linear(width, out, bias=False)
        self.residual = nn.Linear(width, out, bias=False)

    def forward(self, x_BFW: Tensor) -> Tensor:
        """[B, F, W] → [B, F, N A]."""
        query, key, value = (
            layer(x_BFW).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended_BNFA = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended_BFW = attended_BNFA.transpose(1, 2).flatten(2)
        return torch.relu(attended_BFW + self.residual(x_BFW))


class AutoInt(Head):
    """y = wᵀ (e_1 ⊕ … ⊕ e_F) + b of the last layer (eq. 9), with a deep part added: AutoInt+.

    Without hidden layers it is AutoInt.
    """

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        flat = layout.num_fields * layout.field_width
        width = config.num_heads * config.attention_width
        self.attention = nn.Sequential(
            *(
                InteractingLayer(
                    width if layer else layout.field_width,
                    num_heads=config.num_heads,
                    head_width=config.attention_width,
                )
                for layer in range(config.attention_layers)
            )
        )
        self.deep = deep_part(flat, config.hidden, config=config) if config.hidden else None
        deep_width = config.hidden[-1] if config.hidden else 0
        self.out = nn.Linear(layout.num_fields * width + deep_width, 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """One output layer over interactions and deep part."""
        parts = [self.attention(inputs.fields_BFE).flatten(1)]
        if self.deep is not None:
            parts.append(self.deep(inputs.fields_BFE.flatten(1)))
        logit_B: Tensor = self.out(torch.cat(parts, dim=1)).squeeze(1)
        return logit_B
