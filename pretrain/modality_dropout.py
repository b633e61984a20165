"""Which modalities an item does without in a step, so that none is leant on alone.

Letters: see `batch.py`; M modalities.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_hash(rows_n: Tensor, *, step: int, salt: int = 0) -> Tensor:
    """Numbers in [0, 2^32) that are a function of (row, step, salt), the same on every rank."""
    mixed_n = (rows_n + 1) * 2654435761 + (step + 1) * 40503 * 65537 + salt * 374761393
    mixed_n = (mixed_n ^ (mixed_n >> 15)) * 2246822519 & 0xFFFFFFFF
    mixed_n = (mixed_n ^ (mixed_n >> 13)) * 3266489917 & 0xFFFFFFFF
    return mixed_n ^ (mixed_n >> 16)


def dropped_modalities(rows_n: Tensor, presence_nM: Tensor, *, step: int, share: float) -> Tensor:
    """Bool [n, M]: what items have and do without in this step; each keeps at least one.

    Every modality of an item is dropped with probability `share`; where all that it has would be,
    the one with the largest hash stays.
    """
    num_modalities = presence_nM.shape[1]
    if not num_modalities:
        return presence_nM
    hashes = [row_hash(rows_n, step=step, salt=m + 1) for m in range(num_modalities)]
    hash_nM = torch.stack(hashes, dim=1)
    largest_n = torch.where(presence_nM, hash_nM, -1).argmax(1)
    kept_nM = torch.nn.functional.one_hot(largest_n, num_modalities).bool()
    # The item's largest hash is below the bound only where every one of them is.
    return presence_nM & (hash_nM < share * 2**32) & ~kept_nM
