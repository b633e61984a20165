"""One negatives engine for every directed loss: candidates of all ranks, masks, logQ, past vectors.

Letters: see `batch.py`; Q vectors in the queue, H items that are no negatives of a query.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pretrain.collectives import gather_counts, gather_rows, rank, sum_over_ranks, world_size
from pretrain.losses import corrected_losses, info_nce_losses, log_inclusion_probability, prefix
from pretrain.memory_queue import VectorQueue
from pretrain.tiles import Exclusions, tiled_sums

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """What each positive is told apart from."""

    logq: float = 1.0
    """Strength of the popularity correction: with 1 the score learns how likely a choice is,
    popularity included; with 0, how much likelier than the item's popularity says."""

    logq_form: Literal["plain", "corrected"] = "plain"
    """`plain` corrects the positive like a sample (Yi et al., RecSys 2019); `corrected` knows that
    it is always there (arXiv 2507.09331)."""

    same_content: Literal["masked", "negative"] = "masked"
    """Whether an item with the very content of the positive is a negative."""

    own_history: Literal["masked", "negative"] = "masked"
    """Whether other items that the user chose, read or predicted, are negatives."""

    queue_size: int = 0
    """Vectors of past steps' items that are negatives too, without gradient; 0 for none, else
    several times a step's distinct targets, which are logged as `train/distinct_targets`."""

    matryoshka: dict[int, float] = field(default_factory=dict)
    """Prefix width → weight of the same losses on the prefixes, beside the whole width's 1."""

    floor: int = 16
    """Negatives a query has on average, below which the log warns."""

    tile: int = 1024
    """Rows and columns of logits that are in memory at once; 0: all of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.logq <= 1:
            raise ValueError(f"loss.logq must be in [0, 1], got {self.logq}")
        if min(self.queue_size, self.floor, self.tile) < 0:
            raise ValueError(
                "loss: queue_size, floor and tile must not be negative, got "
                f"{self.queue_size}, {self.floor}, {self.tile}"
            )
        if any(width < 1 or weight < 0 for width, weight in self.matryoshka.items()):
            raise ValueError(
                "loss.matryoshka: widths must be >= 1 and weights not negative, got "
                f"{self.matryoshka}"
            )


def first_places(rows_G: Tensor) -> Tensor:
    """Where each distinct value stands first, in order of the values."""
    sorted_G, order_G = torch.sort(rows_G, stable=True)
    is_new_G = torch.ones_like(sorted_G, dtype=torch.bool)
    is_new_G[1:] = sorted_G[1:] != sorted_G[:-1]
    return order_G[is_new_G]


def positions_of(values: Tensor, *, rows_G: Tensor) -> Tensor:
    """First position of each value in `rows_G`, -1 where it does not occur; any shape."""
    if not len(rows_G):
        return torch.full_like(values, -1)
    order_G = torch.argsort(rows_G, stable=True)
    sorted_G = rows_G[order_G]
    found = torch.searchsorted(sorted_G, values.contiguous()).clamp(max=len(rows_G) - 1)
    return torch.where(sorted_G[found] == values, order_G[found], -1)


@dataclass(frozen=True, kw_only=True)
class DistinctItems:
    """The items that some rank names, each once, in the order of their rows, on every rank."""

    rows_G: Tensor
    chosen_c: Tensor
    """Positions of this rank's own ones in its batch."""
    counts: list[int]
    place_G: Tensor
    """Where each stands among the `chosen_c` of all ranks."""

    @classmethod
    def of(cls, named: Tensor, *, rows_n: Tensor) -> DistinctItems:
        """The items at these positions of the batches of all ranks."""
        chosen_c = named[first_places(rows_n[named])]
        counts = gather_counts(len(chosen_c), device=rows_n.device)
        every = gather_rows(rows_n[chosen_c], counts=counts)
        place_G = first_places(every)
        return cls(rows_G=every[place_G], chosen_c=chosen_c, counts=counts, place_G=place_G)

    def gather(self, values_n: Tensor) -> Tensor:
        """Of each item what its first rank says, [G, ...], with gradient."""
        return gather_rows(values_n[self.chosen_c], counts=self.counts)[self.place_G]

    def mine_G(self) -> Tensor:
        """Which of the items this rank speaks for."""
        place_G = self.place_G - sum(self.counts[: rank()])
        return (place_G >= 0) & (place_G < self.counts[rank()])

    def local_of(self, mine_G: Tensor) -> Tensor:
        """Positions in this rank's batch of some of those it speaks for."""
        return self.chosen_c[self.place_G[mine_G] - sum(self.counts[: rank()])]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One loss over the global batch."""

    loss: Tensor
    """This rank's share: the mean over ranks is the mean over all queries."""

    negatives: Tensor
    """Negatives that a query of this rank has on average, after masking."""

    distinct_targets: Tensor
    """Items of every rank that some query is to find."""


def contrast(
    query_PD: Tensor,
    item_nD: Tensor,
    *,
    target_P: Tensor,
    own_PH: Tensor,
    rows_n: Tensor,
    groups_n: Tensor | None,
    probability_N: Tensor,
    scale: Tensor,
    config: NegativesConfig,
    queue: VectorQueue | None = None,
    step: int = 0,
) -> Contrast:
    """Tell each query's item apart from every rank's distinct targets and from past ones.

    Args:
        query_PD: unit vectors, say of users at the moment before their target.
        item_nD: unit vectors of this rank's items.
        target_P: position of each query's item in `item_nD`.
        own_PH: positions of items that are no negatives of the query, -1 where padded.
        rows_n: item rows; one may occur several times.
        groups_n: content groups, None where equal content is unknown.
        probability_N: how likely a draw of a target is each item of the catalogue.
        scale: inverse temperature.
        config: which negatives, and how they are corrected.
        queue: past vectors; it takes in this step's at the end.
        step: number of the global batch, which decides what falls out of a full queue.
    """
    distinct = DistinctItems.of(target_P, rows_n=rows_n)
    rows_G, item_GD = distinct.rows_G, distinct.gather(item_nD)
    groups_G = rows_G if groups_n is None else distinct.gather(groups_n)
    num_queries = sum_over_ranks(torch.tensor(len(query_PD), device=rows_n.device))
    num_draws = num_queries.double()
    fresh = (item_GD.detach(), rows_G, groups_G)
    if queue is not None:
        past = queue.without(rows_G)
        item_GD = torch.cat([item_GD, past.vectors_QD])
        rows_G = torch.cat([rows_G, past.rows_Q])
        groups_G = torch.cat([groups_G, past.groups_Q])
        num_draws = num_draws + past.draws
    if config.logq_form == "corrected":
        num_draws = num_draws - 1  # the query's own draw is its positive, always
    log_q_G = config.logq * log_inclusion_probability(probability_N[rows_G], num_draws=num_draws)

    place_P = positions_of(rows_n[target_P], rows_G=rows_G)
    own_rows_PH = torch.where(own_PH >= 0, rows_n[own_PH.clamp(min=0)], -1)
    masked = config.same_content == "masked" and groups_n is not None
    exclusions = Exclusions(
        target_P=place_P,
        own_PH=positions_of(own_rows_PH, rows_G=rows_G),
        groups=(groups_G,) if masked else (),
    )
    loss = query_PD.new_zeros((), dtype=torch.float32)
    width = query_PD.shape[-1]
    for prefix_width, weight in ({width: 1.0} | config.matryoshka).items():
        left_PD, right_GD = (
            prefix(vectors.float(), prefix_width) for vectors in (query_PD, item_GD)
        )
        sums = tiled_sums(
            scale * left_PD,
            right_GD,
            bias_G=-log_q_G,
            exclusions=exclusions,
            tile=config.tile,
        )
        positive_P = scale * (left_PD * right_GD[place_P]).sum(1)
        if config.logq_form == "corrected":
            losses_P = corrected_losses(positive_P, sums.row_P)
        else:
            losses_P = info_nce_losses(positive_P - log_q_G[place_P], sums.row_P)
        loss = loss + weight * losses_P.sum() * world_size() / num_queries.clamp(min=1)
    if queue is not None:
        queue.push(*fresh, draws=num_queries.double(), step=step)
    return Contrast(
        loss=loss,
        negatives=sums.negatives_P.double().mean(),
        distinct_targets=torch.tensor(len(distinct.rows_G)),
    )


def warn_few_negatives(report: dict[str, Tensor], *, floor: int) -> None:
    """Say so where masks leave a query hardly anything to be told apart from."""
    for name, value in report.items():
        if name.endswith("negatives") and float(value) < floor:
            log.warning(
                "train/%s: %.1f of each query are left after masking, fewer than loss.floor %d; "
                "raise data.global_batch_size%s",
                *(name, float(value), floor),
                ", or set loss.queue_size" if name == "negatives" else "",
            )


def warn_small_queue(report: dict[str, Tensor], *, size: int) -> None:
    """Say so where the queue cannot hold one step, of which logQ then takes all for held."""
    if "distinct_targets" in report and size < int(report["distinct_targets"]):
        log.warning(
            "loss.queue_size %d: a step has %d distinct targets, so that most fall out at once and "
            "logQ overrates how often rare items are negatives; raise it to several steps' "
            "targets, or set it to 0",
            *(size, int(report["distinct_targets"])),
        )
