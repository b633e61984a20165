"""Terms that keep new vectors comparable with an older release's. Letters: see `batch.py`.

`pull` draws each item's new vector to its old one. `influence` is the influence loss of
backward-compatible training (Shen et al., CVPR 2020, arXiv 2003.11942): new vectors must be told
apart by the *old classifier*, whose class vectors are, in retrieval, the old item vectors. They
report that pulling alone was not enough for faces; `python -m pretrain mixed_retrieval` measures
what either does.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from pretrain.alignments import own_items, pair_losses
from pretrain.batch import Batch
from pretrain.known_vectors import KnownVectors, SharedItems
from pretrain.negatives import NegativesConfig, contrast


def pull(item_nD: Tensor, batch: Batch, *, old: KnownVectors) -> Tensor:
    """Mean of 1 - cosine of new and old vectors over the batch's targets that have both."""
    shared = SharedItems.of(item_nD, batch, known=old)
    return shared.mean(1 - (shared.new_PD * shared.known_GE[shared.own_P]).sum(1))


def influence(
    states_BSD: Tensor,
    item_nD: Tensor,
    batch: Batch,
    *,
    old: KnownVectors,
    probability_N: Tensor,
    scale: Tensor,
    config: NegativesConfig,
) -> Tensor:
    """InfoNCE of new users and of new items against old item vectors, their sum.

    A user must find the old vector of the item that came next, an item its own among those of the
    batch's other targets; items without an old vector take no part.
    """
    old_nD, is_known_n = old.of(batch.items.rows_n)
    sample_P, place_P = (batch.targets_BT >= 0).nonzero(as_tuple=True)
    target_P = batch.targets_BT[sample_P, place_P]
    kept_P = is_known_n[target_P]
    sample_P, place_P, target_P = sample_P[kept_P], place_P[kept_P], target_P[kept_P]
    users = contrast(
        states_BSD[sample_P, batch.states_BT[sample_P, place_P]],
        old_nD,
        target_P=target_P,
        own_PH=own_items(batch, config=config)[sample_P],
        rows_n=batch.items.rows_n,
        groups_n=batch.groups_n,
        probability_N=probability_N,
        scale=scale,
        config=dataclasses.replace(config, matryoshka={}),
    ).loss
    shared = SharedItems.of(item_nD, batch, known=old)
    masked = config.same_content == "masked"
    pairs = pair_losses(
        shared.new_PD,
        shared.known_GE,
        own_P=shared.own_P,
        groups=(shared.group_G,) if masked and shared.group_G is not None else (),
        kind="info_nce",
        scale=scale,
        bias=None,
        tile=config.tile,
    )
    return users + shared.mean(pairs.losses_P) + 0.0 * states_BSD.sum()
