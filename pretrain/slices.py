"""Figures of parts of the catalogue: what training knows well, hardly and not at all.

Shapes: B cases, T targets a case, N items, U users of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.cases import columns_of, read, rows_of
from pretrain.metrics import PADDING

Bools = NDArray[np.bool_]

TAIL_SHARE = 0.2
"""Share of the training choices that the least chosen warm items make up together."""


def catalogue_slices(
    items: Path | None, *, train_UN: sp.csr_matrix | None, catalogue: pa.Array
) -> dict[str, Tensor]:
    """Name → bool [N]: which items' targets a slice counts, by the log and a table of the items."""
    found: dict[str, Bools] = {}
    if train_UN is not None:
        count_N = np.bincount(train_UN.indices, minlength=len(catalogue))
        found |= popularity_slices(count_N)
    if items is not None:
        names = [name for name in columns_of(items) if name.startswith("has_")]
        table = read(items, "item_id", *names)
        kept = table.filter(pc.is_in(table["item_id"].cast(catalogue.type), value_set=catalogue))
        rows = rows_of(kept, catalogue=catalogue, where=items)
        presence = {name.removeprefix("has_"): np.ones(len(catalogue), bool) for name in names}
        for name, present_N in presence.items():
            present_N[rows] = kept[f"has_{name}"].to_numpy()
        found |= missing_slices(presence)
    return {name: torch.from_numpy(slice_N) for name, slice_N in found.items()}


def popularity_slices(count_N: NDArray[np.integer]) -> dict[str, Bools]:
    """Items that training chose (`warm`), never (`cold`), and the `tail` of the warm ones.

    The tail are the least chosen items that hold together at most `TAIL_SHARE` of the choices;
    items chosen equally often are in it together or not at all.
    """
    warm_N = count_N > 0
    times, inverse_N = np.unique(count_N, return_inverse=True)
    held = np.cumsum(times * np.bincount(inverse_N))  # choices of the items chosen so often or less
    tail_N = warm_N & (held[inverse_N] <= TAIL_SHARE * count_N.sum())
    return {"warm": warm_N, "cold": ~warm_N, "tail": tail_N}


def missing_slices(presence: Mapping[str, Bools]) -> dict[str, Bools]:
    """Items without a modality, for each modality that some items lack."""
    return {
        f"without_{name}": ~present_N for name, present_N in presence.items() if not present_N.all()
    }


def ranks_within(ranks_BT: Tensor, *, targets_BT: Tensor, slice_N: Tensor) -> Tensor:
    """Ranks of the targets in the slice, padding in the place of all others.

    The rank itself stays that among all candidates: a slice says whose targets count.
    """
    inside_BT = (targets_BT != PADDING) & slice_N[targets_BT.clamp(min=0)]
    return ranks_BT.masked_fill(~inside_BT, PADDING)
