"""Cosines of targets to the items of their histories, without a copy of a vector for every pair.

Shapes: I items (one zero row more for no item), W width of their vectors, N impressions, B some of
them, L history length, T distinct targets, H distinct items of the histories, S similarities, n
vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Most bytes of vectors or products held at once."""

CHUNK_IMPRESSIONS = 1 << 18
PRODUCTS_A_PAIR = 16
"""Products in one large matrix that cost as much as gathering a single pair's vectors (on one core
8 to 40, for widths of 128 to 1,664)."""


def pair_cosines(item_IW: Tensor, item_N: Tensor, history_NL: Tensor) -> Tensor:
    """Products of unit vectors, [N, L]; row -1 of a history is no item, whose product is 0."""
    parts = [
        _cosines(item_IW, item_B.long(), history_BL.long())
        for item_B, history_BL in zip(
            torch.split(item_N, CHUNK_IMPRESSIONS),
            torch.split(history_NL, CHUNK_IMPRESSIONS),
            strict=True,
        )
    ]
    return torch.cat(parts)


def _cosines(item_IW: Tensor, item_B: Tensor, history_BL: Tensor) -> Tensor:
    targets, target_B = torch.unique(item_B, return_inverse=True)
    seen, seen_BL = torch.unique(history_BL, return_inverse=True)
    if len(targets) * len(seen) > PRODUCTS_A_PAIR * history_BL.numel():
        return _gathered(item_IW, item_B, history_BL)
    seen_HW = item_IW[seen]
    order_B = torch.argsort(target_B, stable=True)
    cosine_BL = item_IW.new_empty(history_BL.shape)
    step = max(1, CHUNK_BYTES // (4 * len(seen)))
    ends = torch.bincount(target_B, minlength=len(targets)).cumsum(0)
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        first = int(ends[start - 1]) if start else 0
        rows_b = order_B[first : int(ends[stop - 1])]
        product_TH = item_IW[targets[start:stop]] @ seen_HW.T
        cosine_BL[rows_b] = product_TH[(target_B[rows_b] - start)[:, None], seen_BL[rows_b]]
    return cosine_BL


def _gathered(item_IW: Tensor, item_B: Tensor, history_BL: Tensor) -> Tensor:
    step = max(1, CHUNK_BYTES // (4 * history_BL.shape[1] * item_IW.shape[1]))
    parts = [
        torch.einsum("blw,bw->bl", item_IW[history_bL], item_IW[item_b])
        for item_b, history_bL in zip(
            torch.split(item_B, step), torch.split(history_BL, step), strict=True
        )
    ]
    return torch.cat(parts)


def summarised(
    cosine_BL: Tensor, known_BL: Tensor, *, target_BW: Tensor, user_BW: Tensor
) -> Tensor:
    """The similarities [B, S] of unit vectors; NaN where history or target has no content."""
    count_B = known_BL.sum(1)
    highest_B = cosine_BL.masked_fill(~known_BL, -torch.inf).amax(1)
    mean_B = (cosine_BL * known_BL).sum(1) / count_B.clamp(min=1)
    to_user_B = (user_BW * target_BW).sum(1)
    similarity_BS = torch.stack([to_user_B, highest_B, mean_B], dim=1)
    missing_B = (count_B == 0) | (target_BW.abs().sum(1) == 0)
    return similarity_BS.masked_fill(missing_B[:, None], torch.nan)


def centred(vector_nW: Tensor, centre_W: Tensor | None) -> Tensor:
    """Unit vectors less their centre, at unit length again; what is missing stays zero."""
    if centre_W is None:
        return vector_nW
    some_n1 = (vector_nW != 0).any(1, keepdim=True)
    return F.normalize((vector_nW - centre_W) * some_n1, dim=1)


def mean_vector(vector_nW: Tensor) -> Tensor:
    """Mean [W] of those that are there."""
    count = (vector_nW != 0).any(1).sum().clamp(min=1)
    return vector_nW.sum(0) / count
