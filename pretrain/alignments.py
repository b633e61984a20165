"""The three alignments of one global batch, each a scalar and numbers to look at.

Every rank returns its share of the sum times the number of ranks over the *global* number of
terms (see `objective.py`). Letters: see `batch.py`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from pretrain.batch import Batch
from pretrain.collectives import world_size
from pretrain.item_encoder import ItemVectors
from pretrain.losses import info_nce_losses, sigmoid_losses
from pretrain.memory_queue import VectorQueue
from pretrain.negatives import Contrast, DistinctItems, NegativesConfig, contrast
from pretrain.tiles import Exclusions, tiled_sums


def user_item(
    states_BSD: Tensor,
    item_nD: Tensor,
    batch: Batch,
    *,
    probability_N: Tensor,
    scale: Tensor,
    config: NegativesConfig,
    queue: VectorQueue | None,
    step: int,
) -> Contrast:
    """Each sampled position of a history → the item that came next; own items are no negatives."""
    sample_P, place_P = (batch.targets_BT >= 0).nonzero(as_tuple=True)
    own_BH = torch.cat([batch.history_BL, batch.targets_BT], dim=1)
    return contrast(
        states_BSD[sample_P, batch.states_BT[sample_P, place_P]],
        item_nD,
        target_P=batch.targets_BT[sample_P, place_P],
        own_PH=own_BH[sample_P],
        rows_n=batch.items.rows_n,
        groups_n=batch.groups_n,
        probability_N=probability_N,
        scale=scale,
        config=config,
        queue=queue,
        step=step,
    )


def item_item(
    item_nD: Tensor,
    batch: Batch,
    *,
    probability_N: Tensor,
    scale: Tensor,
    config: NegativesConfig,
) -> Contrast:
    """An item → one that users chose with it (QARM, arXiv 2411.11739).

    The trigger is no negative of itself.
    """
    assert batch.pairs_K2 is not None
    trigger_K, target_K = batch.pairs_K2.unbind(1)
    return contrast(
        item_nD[trigger_K],
        item_nD,
        target_P=target_K,
        own_PH=trigger_K[:, None],
        rows_n=batch.items.rows_n,
        groups_n=batch.groups_n,
        probability_N=probability_N,
        scale=scale,
        config=config,
    )


def content_content(
    vectors: ItemVectors,
    batch: Batch,
    *,
    kind: Literal["info_nce", "sigmoid"],
    scale: Tensor,
    bias: Tensor | None,
    config: NegativesConfig,
) -> dict[str, Tensor]:
    """Every two modalities of the targets → the loss between them, by its name in the log."""
    named = torch.unique(batch.targets_BT[batch.targets_BT >= 0])
    distinct = DistinctItems.of(named, rows_n=batch.items.rows_n)
    return {
        f"{left}_{right}_loss": _two_views(
            vectors.modality_nD[left],
            vectors.modality_nD[right],
            both_n=batch.items.presence[left] & batch.items.presence[right],
            groups_n=batch.groups_n if config.same_content == "masked" else None,
            distinct=distinct,
            kind=kind,
            scale=scale,
            bias=bias,
            tile=config.tile,
        )
        for left, right in combinations(vectors.modality_nD, 2)
    }


def pair_losses(
    left_PD: Tensor,
    right_GD: Tensor,
    *,
    own_P: Tensor,
    group_G: Tensor | None,
    kind: Literal["info_nce", "sigmoid"],
    scale: Tensor,
    bias: Tensor | None,
    tile: int,
) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021, fig. 3) or sigmoids (SigLIP, Zhai et al. 2023).

    Args:
        left_PD: this rank's unit vectors of one view (say, the picture).
        right_GD: the other view on every rank, each item once.
        own_P: where this rank's items stand among those of every rank.
        group_G: items of one group are no negatives of each other; None: all are.
        kind: which of the two losses.
        scale: inverse temperature.
        bias: added to the logits, None for none.
        tile: as in `tiled_sums`.

    Returns:
        One loss an item, [P]; of InfoNCE the mean of the two directions.
    """
    shift = scale.new_zeros(1) if bias is None else bias
    sums = tiled_sums(
        scale * left_PD,
        right_GD,
        bias_G=shift.expand(len(right_GD)),
        exclusions=Exclusions(
            target_P=own_P, group_P=None if group_G is None else group_G[own_P], group_G=group_G
        ),
        kind="logsumexp" if kind == "info_nce" else "softplus",
        columns=kind == "info_nce",
        tile=tile,
    )
    positive_P = scale * (left_PD * right_GD[own_P]).sum(1) + shift
    if sums.column_G is None:
        return sigmoid_losses(positive_P, sums.row_P)
    there_P = info_nce_losses(positive_P, sums.row_P)
    return (there_P + info_nce_losses(positive_P, sums.column_G[own_P])) / 2


def _two_views(
    left_nD: Tensor,
    right_nD: Tensor,
    *,
    both_n: Tensor,
    groups_n: Tensor | None,
    distinct: DistinctItems,
    kind: Literal["info_nce", "sigmoid"],
    scale: Tensor,
    bias: Tensor | None,
    tile: int,
) -> Tensor:
    """The loss between two views of the items that have both, each item once."""
    kept_G = distinct.gather(both_n.long()) > 0
    mine_G = distinct.mine_G() & kept_G
    right_GD = distinct.gather(right_nD)[kept_G]
    losses_P = pair_losses(
        left_nD[distinct.local_of(mine_G)],
        right_GD,
        own_P=(kept_G.cumsum(0) - 1)[mine_G],
        group_G=None if groups_n is None else distinct.gather(groups_n)[kept_G],
        kind=kind,
        scale=scale,
        bias=bias,
        tile=tile,
    )
    # Both views stay in the graph of every rank, whatever it holds.
    nothing = 0.0 * (left_nD.sum() + right_nD.sum() + scale.sum())
    nothing = nothing if bias is None else nothing + 0.0 * bias.sum()
    total: Tensor = losses_P.sum() * world_size() / kept_G.sum().clamp(min=1) + nothing
    return total
