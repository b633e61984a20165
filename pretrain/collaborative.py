"""Content pulled to what a model of ids says of the same items. Letters: see `batch.py`.

As in the first stage of IDProxy (arXiv 2603.01590): the id vectors of items that users know are
given and stay as they are, and content is told to find its own item's among those of others. An
item that no one has chosen yet then lands where an id vector would have put it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.alignments import two_views
from pretrain.batch import Batch
from pretrain.known_vectors import KnownVectors
from pretrain.negatives import Contrast, DistinctItems, NegativesConfig


@dataclass(frozen=True, kw_only=True)
class CollaborativeConfig:
    """Vectors that a model of ids gave items of this catalogue."""

    path: Path
    """Parquet with `item_id` and a column of vectors. Items that it lacks take no part: leave out
    those that the model has hardly seen."""

    newest_event: int
    """Newest event that the model has seen, unix milliseconds."""

    column: str = "vector"
    """The column of vectors, all of one width."""


def collaborative(
    fused_nD: Tensor,
    batch: Batch,
    *,
    targets: KnownVectors,
    projection: nn.Module,
    scale: Tensor,
    config: NegativesConfig,
) -> Contrast:
    """Symmetric InfoNCE of content and projected target over every rank's items that have one.

    Args:
        fused_nD: unit vectors of this rank's items by content alone.
        batch: whose items they are, histories' included.
        targets: of a model of ids, of any width E.
        projection: E → D, learnt, so that the target's own axes do not matter.
        scale: inverse temperature.
        config: masks of equal content, prefixes and tile.
    """
    rows_n = batch.items.rows_n
    target_nE, has_target_n = targets.of(rows_n)
    masked = config.same_content == "masked"
    return two_views(
        fused_nD,
        F.normalize(projection(target_nE).float(), dim=-1),
        both_n=has_target_n,
        groups_n=(batch.groups_n,) if masked and batch.groups_n is not None else (),
        distinct=DistinctItems.of(torch.arange(len(rows_n), device=rows_n.device), rows_n=rows_n),
        kind="info_nce",
        scale=scale,
        bias=None,
        config=config,
    )
