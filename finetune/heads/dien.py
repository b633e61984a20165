"""DIEN: interests evolve along the history, as far as they concern the target (Zhou et al. 2019).

Shapes: B impressions, L history length, H width of a history item, X everything side by side.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from finetune.heads.base import Head, HeadInputs, InputLayout, deep_part
from finetune.settings import HeadConfig


class AUGRU(nn.Module):
    """A GRU whose update gate is scaled by attention: no attention, no change of state.

    ũ_t = a_t σ(W^u i_t + U^u h_{t-1} + b^u), h_t = (1 - ũ_t) ⊙ h_{t-1} + ũ_t ⊙ h̃_t (eq. 11-12),
    r_t = σ(W^r i_t + U^r h_{t-1} + b^r), h̃_t = tanh(W^h i_t + r_t ⊙ U^h h_{t-1} + b^h) (eq. 3-4).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(width, 3 * width)
        self.of_state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, input_BLH: Tensor, attention_BL: Tensor) -> Tensor:
        """The last state, [B, H], from a state of zeros."""
        update_BLH, reset_BLH, candidate_BLH = self.of_input(input_BLH).chunk(3, dim=2)
        state_BH = torch.zeros_like(update_BLH[:, 0])
        for place in range(input_BLH.shape[1]):
            update_BH, reset_BH, candidate_BH = self.of_state(state_BH).chunk(3, dim=1)
            update_BH = torch.sigmoid(update_BLH[:, place] + update_BH)
            update_BH = attention_BL[:, place, None] * update_BH
            reset_BH = torch.sigmoid(reset_BLH[:, place] + reset_BH)
            candidate_BH = torch.tanh(candidate_BLH[:, place] + reset_BH * candidate_BH)
            state_BH = (1 - update_BH) * state_BH + update_BH * candidate_BH
        return state_BH


class DIEN(Head):
    """Interests h_t by a GRU (eq. 2-5), a_t = softmax_t(h_tᵀ W e_a) (eq. 8), AUGRU over h.

    Its last state goes into a deep part like DIN's. The auxiliary loss (eq. 6-7: each interest
    tells the next item from a sampled one) is left out: heads give a logit and no loss.
    """

    uses_history: ClassVar[bool] = True

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__(config, layout)
        self.extraction = nn.GRU(layout.history_width, layout.history_width, batch_first=True)
        self.attention = nn.Linear(layout.history_width, layout.history_width, bias=False)
        self.evolution = AUGRU(layout.history_width)
        width = layout.num_fields * layout.field_width + layout.history_width
        self.deep = deep_part(width, config.hidden, config=config, activation=None)
        self.out = nn.Linear((width, *config.hidden)[-1], 1)

    def forward(self, inputs: HeadInputs) -> Tensor:
        """Padding is at the end, so no interest has seen it, and it gets no attention."""
        interest_BLH, _ = self.extraction(inputs.history_BLH)
        attention_BL = self.attend(inputs.target_BH, interest_BLH, inputs.history_mask_BL)
        state_BH = self.evolution(interest_BLH, attention_BL)
        x_BX = torch.cat([inputs.fields_BFE.flatten(1), state_BH], dim=1)
        logit_B: Tensor = self.out(self.deep(x_BX)).squeeze(1)
        return logit_B

    def attend(self, target_BH: Tensor, interest_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """Attention [B, L] that adds up to one, or to zero where the history is empty."""
        score_BL = torch.einsum("blh,bh->bl", interest_BLH, self.attention(target_BH))
        # Not -inf: the softmax of an empty history would be NaN.
        score_BL = score_BL.masked_fill(~mask_BL, torch.finfo(score_BL.dtype).min)
        return score_BL.softmax(1) * mask_BL
