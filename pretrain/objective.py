"""The training objective of one global batch, on however many ranks. Letters: see `batch.py`.

Every rank returns its share of the sum times the number of ranks over the *global* number of
terms. DDP and ZeRO average gradients over ranks, so N ranks give the loss and the gradients of
one rank on the same global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.batch import Batch
from pretrain.collectives import gather_counts, gather_rows, rank, sum_over_ranks, world_size
from pretrain.gate_balance import gate_balance
from pretrain.item_encoder import ItemVectors
from pretrain.losses import (
    first_occurrences,
    log_inclusion_probability,
    pair_losses,
    positions_of,
    user_item_losses,
)
from pretrain.modality_dropout import dropped_modalities, row_hash
from pretrain.model import TwoSpaceModel


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms and how popularity is treated."""

    user_item_weight: float = 1.0
    """Weight of user→item InfoNCE."""

    pair_weight: float = 0.1
    """Weight of picture-text InfoNCE; it has no effect unless both towers exist."""

    logq: float = 1.0
    """Strength of the popularity correction: with 1 the score learns how likely a choice is,
    popularity included; with 0, how much likelier than the item's popularity says."""

    gate_balance_weight: float = 0.0
    """Weight of the term that keeps the fusion's mean gate even over an item's modalities; 0 is
    off. Turn it on where `health` warns that a modality is ignored, e.g. with 0.1."""

    def __post_init__(self) -> None:
        if self.gate_balance_weight < 0:
            raise ValueError(
                f"loss.gate_balance_weight must not be negative, got {self.gate_balance_weight}"
            )
        if self.user_item_weight < 0 or self.pair_weight < 0 or not 0 <= self.logq <= 1:
            raise ValueError(
                "loss: weights must not be negative and logq in [0, 1], got "
                f"{self.user_item_weight}, {self.pair_weight}, {self.logq}"
            )


@dataclass(frozen=True)
class Objective:
    """The loss to differentiate, and numbers to look at."""

    loss: Tensor
    report: dict[str, Tensor]


def hidden_ids(rows_n: Tensor, *, step: int, share: float) -> Tensor:
    """Which items' ids are hidden in a step: a hash of (row, step), the same on every rank."""
    return row_hash(rows_n, step=step) < share * 2**32


def objective(
    model: TwoSpaceModel, batch: Batch, *, config: LossConfig, item_probability_N: Tensor, step: int
) -> Objective:
    """The weighted sum of the losses of one global batch."""
    rows_n = batch.items.rows_n
    seen_nM = torch.stack([batch.items.presence[m] for m in model.item_encoder.modalities], 1)
    dropped_nM = dropped_modalities(rows_n, seen_nM, step=step, share=model.config.modality_dropout)
    seen_nM = seen_nM & ~dropped_nM
    vectors = model.item_encoder(batch.items, dropped_nM=dropped_nM)
    hidden_n = hidden_ids(rows_n, step=step, share=model.config.id_dropout)
    item_nD, event_nD = model.encode_items(vectors, rows_n, hidden_n=hidden_n)
    states_BSD = model.encode_histories(
        event_nD,
        history_BL=batch.history_BL,
        times_BL=batch.times_BL,
        users_BC=batch.users_BC,
    )
    exists_BT = batch.targets_BT >= 0
    query_BTD = states_BSD.gather(
        1, batch.states_BT[..., None].expand(-1, -1, states_BSD.shape[-1])
    )
    # The candidates: distinct targets of this rank, then of every rank.
    chosen_c = torch.unique(batch.targets_BT[exists_BT])
    counts = gather_counts(len(chosen_c), device=rows_n.device)
    rows_G = gather_rows(rows_n[chosen_c], counts=counts)
    repeated_G = first_occurrences(rows_G) != torch.arange(len(rows_G), device=rows_n.device)
    ours = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))

    num_targets = sum_over_ranks(exists_BT.sum())
    log_q_G = config.logq * log_inclusion_probability(
        item_probability_N[rows_G], num_draws=num_targets
    )
    target_BT = positions_of(rows_n[batch.targets_BT.clamp(min=0)], rows_G=rows_G)
    own_BG = _own_items(batch, rows_G=rows_G)
    sample_P = exists_BT.nonzero()[:, 0]
    excluded_PG = own_BG[sample_P] | repeated_G
    losses_P = user_item_losses(
        query_BTD[exists_BT],
        gather_rows(item_nD[chosen_c], counts=counts),
        target_P=target_BT[exists_BT],
        excluded_PG=excluded_PG,
        log_q_G=log_q_G,
        scale=model.temperature(),
    )
    user_item = losses_P.sum() * world_size() / num_targets
    loss = config.user_item_weight * user_item
    report = {
        "user_item_loss": user_item,
        "negatives": (~excluded_PG).sum(1).double().mean(),
        "scale": model.temperature(),
    }
    if {"image", "text"} <= set(vectors.modality_nD) and config.pair_weight:
        pair = _picture_text(
            model, vectors, batch, chosen_c=chosen_c, counts=counts, ours=ours, kept_G=~repeated_G
        )
        loss = loss + config.pair_weight * pair
        report["picture_text_loss"] = pair
    if config.gate_balance_weight:
        balance = gate_balance(vectors.gate_nM, seen_nM, rows_n=rows_n)
        loss = loss + config.gate_balance_weight * balance
        report["gate_balance"] = balance
    for number, name in enumerate(model.item_encoder.modalities):
        gate_n = vectors.gate_nM[:, number][seen_nM[:, number]]
        report[f"gate_{name}"] = gate_n.mean() if len(gate_n) else gate_n.sum()
    return Objective(loss, {name: value.detach() for name, value in report.items()})


def _own_items(batch: Batch, *, rows_G: Tensor) -> Tensor:
    """[B, G]: does a candidate belong to the sample's own window? It is no negative then."""
    named = torch.cat([batch.history_BL, batch.targets_BT], dim=1)
    rows = batch.items.rows_n[named.clamp(min=0)]
    places = torch.where(named >= 0, positions_of(rows, rows_G=rows_G), -1)
    own_BG = torch.zeros(len(named), len(rows_G) + 1, dtype=torch.bool, device=rows_G.device)
    own_BG.scatter_(1, torch.where(places < 0, len(rows_G), places), True)
    return own_BG[:, :-1]


def _picture_text(
    model: TwoSpaceModel,
    vectors: ItemVectors,
    batch: Batch,
    *,
    chosen_c: Tensor,
    counts: list[int],
    ours: slice,
    kept_G: Tensor,
) -> Tensor:
    """InfoNCE between the two views of the candidates that have both, each item once."""
    presence = batch.items.presence
    both_G = gather_rows((presence["image"] & presence["text"])[chosen_c].long(), counts=counts) > 0
    kept_G = kept_G & both_G
    image_c, text_c = (vectors.modality_nD[name][chosen_c] for name in ("image", "text"))
    image_GD, text_GD = (gather_rows(view, counts=counts)[kept_G] for view in (image_c, text_c))
    own_P = (kept_G.long().cumsum(0) - 1)[ours][kept_G[ours]]
    total = kept_G.sum()
    if total == 0:  # the same on every rank; both views stay in the graph
        nothing: Tensor = 0.0 * (image_c.sum() + text_c.sum() + model.pair_temperature().sum())
        return nothing
    losses_P = pair_losses(
        image_c[kept_G[ours]],
        image_GD,
        right_PD=text_c[kept_G[ours]],
        right_GD=text_GD,
        own_P=own_P,
        scale=model.pair_temperature(),
    )
    mean: Tensor = losses_P.sum() * world_size() / total
    return mean
