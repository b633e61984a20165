"""The three alignments of one global batch, each a scalar and numbers to look at.

Every rank returns its share of the sum times the number of ranks over the *global* number of
terms (see `objective.py`). Letters: see `batch.py`; W the width of a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from pretrain.batch import Batch
from pretrain.collectives import world_size
from pretrain.item_encoder import ItemVectors
from pretrain.losses import info_nce_losses, prefix, sigmoid_losses
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
    """Each sampled position of a history → the item that came next."""
    sample_P, place_P = (batch.targets_BT >= 0).nonzero(as_tuple=True)
    return contrast(
        states_BSD[sample_P, batch.states_BT[sample_P, place_P]],
        item_nD,
        target_P=batch.targets_BT[sample_P, place_P],
        own_PH=own_items(batch, config=config)[sample_P],
        rows_n=batch.items.rows_n,
        groups_n=batch.groups_n,
        probability_N=probability_N,
        scale=scale,
        config=config,
        queue=queue,
        step=step,
    )


def own_items(batch: Batch, *, config: NegativesConfig) -> Tensor:
    """Items that are no negatives of each sample's user, [B, H], -1 where padded."""
    if config.own_history == "negative":
        return batch.targets_BT[:, :0]
    return torch.cat([batch.history_BL, batch.targets_BT], dim=1)


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
) -> dict[str, Contrast]:
    """Every two modalities of the targets → the loss between them, by both names.

    Two items with the same picture, or with the same text, are no negatives of each other.
    """
    named = torch.unique(batch.targets_BT[batch.targets_BT >= 0])
    distinct = DistinctItems.of(named, rows_n=batch.items.rows_n)
    groups = batch.modality_groups_n if config.same_content == "masked" else {}
    return {
        f"{left}_{right}": two_views(
            vectors.modality_nD[left],
            vectors.modality_nD[right],
            both_n=batch.items.presence[left] & batch.items.presence[right],
            groups_n=tuple(groups[name] for name in (left, right) if name in groups),
            distinct=distinct,
            kind=kind,
            scale=scale,
            bias=bias,
            config=config,
        )
        for left, right in combinations(vectors.modality_nD, 2)
    }


@dataclass(frozen=True)
class PairLosses:
    """What is said of this rank's items, [P]."""

    losses_P: Tensor
    """Of InfoNCE the mean of the two directions."""

    negatives_P: Tensor
    """Items that each is told apart from, after masking."""


def pair_losses(
    left_PD: Tensor,
    right_GD: Tensor,
    *,
    own_P: Tensor,
    groups: tuple[Tensor, ...],
    kind: Literal["info_nce", "sigmoid"],
    scale: Tensor,
    bias: Tensor | None,
    tile: int,
    matryoshka: Mapping[int, float] = MappingProxyType({}),
) -> PairLosses:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021, fig. 3) or sigmoids (SigLIP, Zhai et al. 2023).

    Args:
        left_PD: this rank's unit vectors of one view (say, the picture).
        right_GD: the other view on every rank, each item once.
        own_P: where this rank's items stand among those of every rank.
        groups: as in `Exclusions`.
        kind: which of the two losses.
        scale: inverse temperature.
        bias: added to the logits, None for none.
        tile: as in `tiled_sums`.
        matryoshka: prefix width → weight of the same losses on the prefixes.
    """
    shift = scale.new_zeros(1) if bias is None else bias
    exclusions = Exclusions(target_P=own_P, groups=groups)
    losses_P = left_PD.new_zeros(len(left_PD), dtype=torch.float32)
    for width, weight in ({left_PD.shape[-1]: 1.0} | dict(matryoshka)).items():
        left_PW, right_GW = (prefix(vectors.float(), width) for vectors in (left_PD, right_GD))
        sums = tiled_sums(
            scale * left_PW,
            right_GW,
            bias_G=shift.expand(len(right_GW)),
            exclusions=exclusions,
            kind="logsumexp" if kind == "info_nce" else "softplus",
            columns=kind == "info_nce",
            tile=tile,
        )
        positive_P = scale * (left_PW * right_GW[own_P]).sum(1) + shift
        if sums.column_G is None:
            losses_P = losses_P + weight * sigmoid_losses(positive_P, sums.row_P)
        else:
            there_P = info_nce_losses(positive_P, sums.row_P)
            back_P = info_nce_losses(positive_P, sums.column_G[own_P])
            losses_P = losses_P + weight * (there_P + back_P) / 2
    return PairLosses(losses_P, sums.negatives_P)


def two_views(
    left_nD: Tensor,
    right_nD: Tensor,
    *,
    both_n: Tensor,
    groups_n: tuple[Tensor, ...],
    distinct: DistinctItems,
    kind: Literal["info_nce", "sigmoid"],
    scale: Tensor,
    bias: Tensor | None,
    config: NegativesConfig,
) -> Contrast:
    """The loss between two views of the items that have both, each item once.

    Args:
        left_nD: unit vectors of one view of this rank's items.
        right_nD: those of the other view.
        both_n: which items have both.
        groups_n: for each kind of content its groups; items that share one are no negatives.
        distinct: the items that take part, where they have both views.
        kind: as in `pair_losses`.
        scale: inverse temperature.
        bias: as in `pair_losses`.
        config: tile and prefixes.
    """
    kept_G = distinct.gather(both_n.long()) > 0
    mine_G = distinct.mine_G() & kept_G
    pairs = pair_losses(
        left_nD[distinct.local_of(mine_G)],
        distinct.gather(right_nD)[kept_G],
        own_P=(kept_G.cumsum(0) - 1)[mine_G],
        groups=tuple(distinct.gather(group_n)[kept_G] for group_n in groups_n),
        kind=kind,
        scale=scale,
        bias=bias,
        tile=config.tile,
        matryoshka=config.matryoshka,
    )
    # Both views stay in the graph of every rank, whatever it holds.
    nothing = 0.0 * (left_nD.sum() + right_nD.sum() + scale.sum())
    nothing = nothing if bias is None else nothing + 0.0 * bias.sum()
    total = pairs.losses_P.sum() * world_size() / kept_G.sum().clamp(min=1) + nothing
    return Contrast(
        loss=total,
        negatives=pairs.negatives_P.double().mean(),
        distinct_targets=kept_G.sum(),
    )
