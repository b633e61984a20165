"""SimTier: how many items of a history are how similar to the target (Sheng et al. 2024).

"Enhancing Taobao Display Advertising with Multimodal Representations", arXiv 2407.19467: [-1, 1]
is divided into tiers, and the cosines of the history's items to the target are counted in each.
The counts of an impression never change, so that they are made once, for histories longer than a
head could read item by item.

Shapes: I items (one zero row more for no item), W width of their vectors, N impressions, B some of
them, L history length, T tiers.
"""

import numpy as np
import torch
from torch import Tensor

from finetune.data import CtrData, Impressions

CHUNK_BYTES = 64 << 20
"""Most bytes of gathered history vectors held at once."""


def count_tiers(cosine_BL: Tensor, known_BL: Tensor, *, tiers: int) -> Tensor:
    """Cosines in each tier, [B, T]; the last tier holds 1 itself."""
    tier_BL = ((cosine_BL + 1) / 2 * tiers).long().clamp(0, tiers - 1)
    counts_BT = cosine_BL.new_zeros(len(cosine_BL), tiers)
    return counts_BT.scatter_add_(1, tier_BL, known_BL.to(cosine_BL.dtype))


def tier_counts(
    data: CtrData, impressions: Impressions, *, item_IW: Tensor, tiers: int, length: int
) -> Tensor:
    """log(1 + count) of every tier, [N, T], from the latest `length` positives strictly before.

    The paper gives the counts themselves to a network behind batch normalisation; the logarithm
    keeps long histories in range without. All zero where nothing can be compared.
    """
    present_I = (item_IW != 0).any(1)
    chunk = max(1, CHUNK_BYTES // (4 * length * item_IW.shape[1]))
    parts = []
    for rows_B in torch.split(torch.arange(len(impressions)), chunk):
        history_BL = histories(data, impressions, rows_B, length=length)
        target_B = impressions.item_N[rows_B]
        known_BL = (history_BL >= 0) & present_I[history_BL] & present_I[target_B][:, None]
        cosine_BL = torch.einsum("blw,bw->bl", item_IW[history_BL], item_IW[target_B])
        parts.append(count_tiers(cosine_BL, known_BL, tiers=tiers).log1p())
    return torch.cat(parts)


def histories(data: CtrData, impressions: Impressions, rows_B: Tensor, *, length: int) -> Tensor:
    """Item rows of the latest positives strictly before each impression, [B, L], -1 padding."""
    user_B, time_B = impressions.user_N[rows_B].numpy(), impressions.time_N[rows_B].numpy()
    history_BL = np.full((len(rows_B), length), -1, np.int64)
    known_B = user_B < data.dataset.num_users
    history_BL[known_B], _ = data.positives.histories(
        user_B[known_B], time_B[known_B], length=length
    )
    return torch.from_numpy(history_BL)
