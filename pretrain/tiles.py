"""Sums over all candidates of a query, tile by tile: memory linear in the batch, never [P, G].

The forward keeps one number a row; the backward makes each tile of logits again and from it all
gradients (Rabe & Staats 2021, "Self-attention does not need O(n²) memory", applied to a loss).
Both directions of a symmetric loss come from the same tile, on any number of ranks. Letters: see
`batch.py`; H excluded candidates of a query, p and g the rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.collectives import (
    gather_counts,
    gather_rows,
    logsumexp_over_ranks,
    sum_over_ranks,
)

Sum = Literal["logsumexp", "softplus"]
Tile = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """Which candidates are no negatives of which query, as ids.

    An excluded logit is -inf before any sum, so that it adds nothing and gets no gradient.
    """

    target_P: Tensor
    """Each query's own item among the candidates: its term is added by the loss itself."""

    own_PH: Tensor | None = None
    """Candidates that the query's user has chosen too, -1 where padded."""

    groups: tuple[Tensor, ...] = ()
    """Content groups of the candidates, [G] each, one for every kind of content: a candidate that
    shares one with the query's own item is no negative."""

    def shared_P(self) -> list[Tensor]:
        """For each kind the rows whose content occurs in more than one candidate.

        They are the only ones to compare.
        """
        found = []
        for group_G in self.groups:
            sorted_G, group_P = group_G.sort().values, group_G[self.target_P]
            first_P = torch.searchsorted(sorted_G, group_P)
            found.append(torch.searchsorted(sorted_G, group_P, right=True) - first_P > 1)
        return found

    def apply_(self, logits_pg: Tensor, tile: Tile, *, shared_P: list[Tensor]) -> None:
        """Write -inf where a candidate of this tile is no negative."""
        rows, columns = tile
        target_p = self.target_P[rows] - columns.start
        _erase_(logits_pg, target_p[:, None])
        if self.own_PH is not None:
            _erase_(logits_pg, self.own_PH[rows] - columns.start)
        for group_G, some_P in zip(self.groups, shared_P, strict=True):
            row_s = some_P[rows].nonzero().squeeze(1)
            if len(row_s):
                group_s = group_G[self.target_P[rows][row_s]]
                same_sg = group_s[:, None] == group_G[columns]
                logits_pg[row_s] = logits_pg[row_s].masked_fill(same_sg, float("-inf"))


def _erase_(logits_pg: Tensor, place_pH: Tensor) -> None:
    inside_pH = (place_pH >= 0) & (place_pH < logits_pg.shape[1])
    row, number = inside_pH.nonzero(as_tuple=True)
    logits_pg[row, place_pH[row, number]] = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What remains of the logits of every query against every candidate."""

    row_P: Tensor
    """Log-sum-exp, or sum of softplus, over the negatives of each row; -inf, or 0, for none."""

    column_G: Tensor | None
    """Log-sum-exp over the rows of all ranks for each candidate; only of a symmetric loss."""

    negatives_P: Tensor
    """How many negatives each row has."""


def tiled_sums(
    scaled_PD: Tensor,
    candidate_GD: Tensor,
    *,
    bias_G: Tensor,
    exclusions: Exclusions,
    kind: Sum = "logsumexp",
    columns: bool = False,
    tile: int,
) -> Sums:
    """Sums over `scaled_PD @ candidate_GD.T + bias_G` with its gradients, in float32.

    Args:
        scaled_PD: this rank's queries, times the inverse temperature.
        candidate_GD: the candidates of every rank.
        bias_G: added to the logits of each candidate (say, minus log Q).
        exclusions: which logits are left out.
        kind: of a softmax's denominator, or of independent sigmoids.
        columns: also sum over the rows of all ranks (logsumexp alone).
        tile: rows and columns of a tile; 0 makes the whole [P, G] matrix at once and leaves the
            gradient to autograd, which is the plain twin that tests compare with.

    Returns:
        The sums; gradients of `column_G` are summed over the ranks, as each holds a part of the
        loss.
    """
    if tile == 0:
        return _plain_sums(
            scaled_PD, candidate_GD, bias_G, exclusions=exclusions, kind=kind, columns=columns
        )
    row_P, column_G, negatives_P = _TiledSums.apply(
        scaled_PD.float(), candidate_GD.float(), bias_G.float(), exclusions, kind, columns, tile
    )
    return Sums(row_P=row_P, column_G=column_G if columns else None, negatives_P=negatives_P)


def _plain_sums(
    scaled_PD: Tensor,
    candidate_GD: Tensor,
    bias_G: Tensor,
    *,
    exclusions: Exclusions,
    kind: Sum,
    columns: bool,
) -> Sums:
    with torch.autocast(scaled_PD.device.type, enabled=False):
        logits_PG = scaled_PD.float() @ candidate_GD.float().T + bias_G
    excluded_PG = torch.zeros_like(logits_PG)
    whole = (slice(0, len(scaled_PD)), slice(0, len(candidate_GD)))
    exclusions.apply_(excluded_PG, whole, shared_P=exclusions.shared_P())
    logits_PG = logits_PG.masked_fill(excluded_PG.isneginf(), float("-inf"))
    column_G = None
    if columns:
        counts = gather_counts(len(logits_PG), device=logits_PG.device)
        column_G = gather_rows(logits_PG, counts=counts).logsumexp(0)
    row_P = logits_PG.logsumexp(1) if kind == "logsumexp" else F.softplus(logits_PG).sum(1)
    return Sums(row_P=row_P, column_G=column_G, negatives_P=(~excluded_PG.isneginf()).sum(1))


class _TiledSums(torch.autograd.Function):
    """The forward and the backward of `tiled_sums`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        scaled_PD: Tensor,
        candidate_GD: Tensor,
        bias_G: Tensor,
        exclusions: Exclusions,
        kind: Sum,
        columns: bool,
        tile: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        start = float("-inf") if kind == "logsumexp" else 0.0
        row_P = scaled_PD.new_full((len(scaled_PD),), start)
        column_G = scaled_PD.new_full((len(candidate_GD) if columns else 0,), float("-inf"))
        excluded_P = torch.zeros(len(scaled_PD), dtype=torch.int64, device=scaled_PD.device)
        saved = (scaled_PD, candidate_GD, bias_G)
        for (rows, cols), logits_pg in _logit_tiles(*saved, exclusions, tile=tile):
            excluded_P[rows] += logits_pg.isneginf().sum(1)
            if columns:
                column_G[cols] = torch.logaddexp(column_G[cols], logits_pg.logsumexp(0))
            if kind == "logsumexp":
                row_P[rows] = torch.logaddexp(row_P[rows], logits_pg.logsumexp(1))
            else:
                row_P[rows] += F.softplus(logits_pg).sum(1)
        if columns:
            column_G = logsumexp_over_ranks(column_G)
        ctx.save_for_backward(*saved, row_P, column_G)
        ctx.settings = (exclusions, kind, columns, tile)
        negatives_P = len(candidate_GD) - excluded_P
        ctx.mark_non_differentiable(negatives_P)
        return row_P, column_G, negatives_P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scaled_PD, candidate_GD, bias_G, row_P, column_G = ctx.saved_tensors
        exclusions, kind, columns, tile = ctx.settings
        grad_row_P = grads[0]
        grad_column_G = sum_over_ranks(grads[1]) if columns else grads[1]
        # A row without negatives has the sum -inf, and weights exp(-inf - inf) = 0.
        row_P = row_P.masked_fill(row_P.isneginf(), float("inf"))
        column_G = column_G.masked_fill(column_G.isneginf(), float("inf"))
        grad_scaled_PD = torch.zeros_like(scaled_PD)
        grad_candidate_GD = torch.zeros_like(candidate_GD)
        grad_bias_G = torch.zeros_like(bias_G)
        with torch.autocast(scaled_PD.device.type, enabled=False):
            for (rows, cols), logits_pg in _logit_tiles(
                scaled_PD, candidate_GD, bias_G, exclusions, tile=tile
            ):
                both_pg = None
                if columns:
                    both_pg = (logits_pg - column_G[cols]).exp_().mul_(grad_column_G[cols])
                if kind == "logsumexp":
                    weight_pg = logits_pg.sub_(row_P[rows, None]).exp_()
                else:
                    weight_pg = logits_pg.sigmoid_()
                weight_pg.mul_(grad_row_P[rows, None])
                if both_pg is not None:
                    weight_pg.add_(both_pg)
                grad_scaled_PD[rows].addmm_(weight_pg, candidate_GD[cols])
                grad_candidate_GD[cols].addmm_(weight_pg.T, scaled_PD[rows])
                if ctx.needs_input_grad[2]:
                    grad_bias_G[cols] += weight_pg.sum(0)
        return grad_scaled_PD, grad_candidate_GD, grad_bias_G, None, None, None, None


def _logit_tiles(
    scaled_PD: Tensor, candidate_GD: Tensor, bias_G: Tensor, exclusions: Exclusions, *, tile: int
) -> Iterator[tuple[Tile, Tensor]]:
    """Each tile's place and its logits, in a buffer that the next tile overwrites."""
    shared_P = exclusions.shared_P()
    buffer = scaled_PD.new_empty(tile * tile)
    for top in range(0, len(scaled_PD), tile):
        rows = slice(top, min(top + tile, len(scaled_PD)))
        for left in range(0, len(candidate_GD), tile):
            cols = slice(left, min(left + tile, len(candidate_GD)))
            shape = (rows.stop - rows.start, cols.stop - cols.start)
            logits_pg = buffer[: shape[0] * shape[1]].view(shape)
            with torch.autocast(scaled_PD.device.type, enabled=False):
                torch.addmm(
                    bias_G[cols].expand(shape),
                    scaled_PD[rows],
                    candidate_GD[cols].T,
                    out=logits_pg,
                )
            exclusions.apply_(logits_pg, (rows, cols), shared_P=shared_P)
            yield (rows, cols), logits_pg
