"""Retrieval metrics over a whole catalogue: ranks first, then Recall, NDCG and MRR from the ranks.

Shapes: B cases, N catalogue items, D width, T targets a case and M masked items a case (both
padded with -1), C candidates, K columns that are ranked (C, or N without candidates), U users.

A rank is 0 for the best item. Ties are broken against the system: whatever scores the same as a
target stands above it, so a constant scorer finds nothing. NaN is an error, never a rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1
"""Fills the unused places of `targets_BT` and `masked_BM`, and the ranks of unused targets."""


def ranks_of_targets(scores_BK: Tensor, targets_BT: Tensor, masked_BM: Tensor) -> Tensor:
    """Rank each target among all columns of its row that are not masked; i64 [B, T], 0 = best.

    The rank is the place in the list that a hostile sort would give: every other column with the
    same score first, then the targets of equal score in their order. Two targets of a case
    therefore never share a rank. A masked target cannot be retrieved: its rank is K, one behind the
    last place. Padded targets get -1. Targets of one case must be distinct.
    """
    scores_BK = scores_BK.float()
    _check_ranked(scores_BK, targets_BT, masked_BM)
    open_BK = scores_BK.clone()
    row, place = (masked_BM != PADDING).nonzero(as_tuple=True)
    open_BK[row, masked_BM[row, place]] = -math.inf

    present_BT = targets_BT != PADDING
    # A padded target takes NaN: no comparison with it is ever true.
    own_BT = open_BK.gather(1, targets_BT.clamp(min=0)).masked_fill(~present_BT, math.nan)
    ranks_BT = torch.full_like(targets_BT, PADDING)
    for t in range(targets_BT.shape[1]):
        rows = present_BT[:, t].nonzero().squeeze(1)
        own_RT = own_BT[rows]
        mine_R1 = own_RT[:, t : t + 1]
        above_R = (open_BK[rows] >= mine_R1).sum(1)
        # Counted above: the target itself, and later targets of the same score, which follow it.
        following_R = (own_RT[:, t:] == mine_R1).sum(1)
        ranks_BT[rows, t] = above_R - following_R
    return ranks_BT.masked_fill(own_BT == -math.inf, open_BK.shape[1])


def rank_catalogue(
    user_BD: Tensor,
    item_ND: Tensor,
    *,
    target_rows: Tensor,
    masked_rows: Tensor,
    candidates: Tensor | None = None,
    chunk: int = 256,
) -> Tensor:
    """Rank targets by the inner product of user and item vectors; i64 [B, T], 0 = best.

    `target_rows` [B, T] and `masked_rows` [B, M] are catalogue rows, padded with -1. With
    `candidates` (distinct rows, [C]) only those are ranked: masked rows outside them say nothing,
    a target outside them is an error. No more than `chunk` rows of scores exist at a time.
    """
    item_KD = item_ND if candidates is None else item_ND[candidates]
    return rank_scored(
        lambda cases: user_BD[cases].float() @ item_KD.float().T,
        num_items=len(item_ND),
        target_rows=target_rows,
        masked_rows=masked_rows,
        candidates=candidates,
        chunk=chunk,
    )


def rank_scored(
    scores_of: Callable[[slice], Tensor],
    *,
    num_items: int,
    target_rows: Tensor,
    masked_rows: Tensor,
    candidates: Tensor | None = None,
    chunk: int = 256,
) -> Tensor:
    """Rank targets by any scorer: `scores_of(cases)` gives the scores [chunk, K] of those cases.

    With `candidates` its columns are the candidates in their order. See `rank_catalogue`.
    """
    if chunk < 1:
        raise ValueError(f"chunk: found {chunk}, expected at least 1 case")
    targets_BT, masked_BM = target_rows, masked_rows
    if candidates is not None:
        place_N = _places(candidates, num_items)
        targets_BT = _to_places(target_rows, place_N)
        outside = (targets_BT == PADDING) & (target_rows != PADDING)
        if bool(outside.any()):
            raise ValueError(
                f"targets: found {int(outside.sum())} outside the candidates (the first is row "
                f"{int(target_rows[outside][0])}), expected candidates only; drop those targets "
                "or widen the candidates"
            )
        masked_BM = _to_places(masked_rows, place_N)
    ranks = [
        ranks_of_targets(
            scores_of(slice(start, start + chunk)),
            targets_BT[start : start + chunk],
            masked_BM[start : start + chunk],
        )
        for start in range(0, len(targets_BT), chunk)
    ]
    return torch.cat(ranks) if ranks else torch.empty_like(target_rows)


def target_ranks(
    user_BD: Tensor, item_ND: Tensor, target_B: Tensor, masked_BM: Tensor, *, chunk: int = 256
) -> Tensor:
    """Rank one target a case among the whole catalogue; i64 [B], 0 = best."""
    if bool((target_B < 0).any()):
        raise ValueError(
            f"target_B: found {int((target_B < 0).sum())} negative rows, expected one target a "
            "case; leave cases without a target out"
        )
    ranks_B1 = rank_catalogue(
        user_BD, item_ND, target_rows=target_B[:, None], masked_rows=masked_BM, chunk=chunk
    )
    return ranks_B1.squeeze(1)


def recall_at_k(ranks_BT: Tensor, *, k: int) -> Tensor:
    """Share of a case's targets among its first k items; float [B], NaN without a target.

    The denominator is the number of targets, also where it exceeds k (the protocols of
    `tests/bench` count so); with k beyond the candidates every target is found.
    """
    _check_k(k)
    found_B = ((ranks_BT != PADDING) & (ranks_BT < k)).sum(1)
    return found_B / (ranks_BT != PADDING).sum(1)


def ndcg_at_k(ranks_BT: Tensor, *, k: int) -> Tensor:
    """Normalised discounted cumulative gain with binary gains; float [B], NaN without a target.

    Järvelin and Kekäläinen 2002, with the now usual discount 1 / log2(rank + 2), divided by the
    best value that k places allow: min(k, number of targets) hits at the top.
    """
    _check_k(k)
    num_targets_B = (ranks_BT != PADDING).sum(1)
    hit_BT = (ranks_BT != PADDING) & (ranks_BT < k)
    gain_BT = torch.where(hit_BT, 1.0 / torch.log2(ranks_BT.clamp(min=0) + 2.0), 0.0)
    places_T = torch.arange(ranks_BT.shape[1], device=ranks_BT.device)
    best_T = (1.0 / torch.log2(places_T + 2.0)).cumsum(0)
    best_B = best_T[(num_targets_B.clamp(max=k) - 1).clamp(min=0)]
    return torch.where(num_targets_B > 0, gain_BT.sum(1) / best_B, math.nan)


def reciprocal_rank(ranks_BT: Tensor) -> Tensor:
    """One over the place (from 1) of the best target, the R of MRR (Voorhees 1999); float [B]."""
    present_BT = ranks_BT != PADDING
    inverse_BT = torch.where(present_BT, 1.0 / (ranks_BT + 1.0), 0.0)
    return torch.where(present_BT.any(1), inverse_BT.amax(1), math.nan)


@dataclass(frozen=True, kw_only=True)
class UserMean:
    """A metric averaged within each user and then over users."""

    mean: float
    se: float
    """One standard error over users: standard deviation (n - 1) / sqrt(n); NaN for one user."""
    num_users: int
    num_left_out: int
    """Cases without a value (no target); they count nowhere else."""


def mean_over_users(values_B: Tensor, *, users_B: Tensor | None = None) -> UserMean:
    """Average a per-case metric within each user, then over users; NaN cases are left out.

    Without `users_B` every case is a user of its own.
    """
    kept_B = ~values_B.isnan()
    num_left_out = int((~kept_B).sum())
    values_U = user_means(values_B, users_B=users_B)
    if len(values_U) == 0:
        raise ValueError(
            f"metric: found no case with a target ({num_left_out} without), expected at least one"
        )
    return UserMean(
        mean=float(values_U.mean()),
        se=float(values_U.std() / math.sqrt(len(values_U))) if len(values_U) > 1 else math.nan,
        num_users=len(values_U),
        num_left_out=num_left_out,
    )


def user_means(values_B: Tensor, *, users_B: Tensor | None = None) -> Tensor:
    """Mean of each user's cases [U], in double; NaN cases, and users of no others, are left out."""
    kept_B = ~values_B.isnan()
    values_B = values_B[kept_B].double()
    if users_B is None:
        return values_B
    users_B = users_B[kept_B]
    _, user_B, count_U = torch.unique(users_B, return_inverse=True, return_counts=True)
    total_U = torch.zeros(len(count_U), dtype=values_B.dtype, device=values_B.device)
    mean_U: Tensor = total_U.index_add_(0, user_B, values_B) / count_U
    return mean_U


def _places(candidates: Tensor, num_items: int) -> Tensor:
    num_distinct = len(torch.unique(candidates))
    if num_distinct != len(candidates) or num_distinct == 0:
        raise ValueError(
            f"candidates: found {len(candidates)} rows, {num_distinct} of them "
            "distinct; expected distinct rows, at least one"
        )
    place_N = torch.full((num_items,), PADDING, dtype=torch.int64, device=candidates.device)
    place_N[candidates] = torch.arange(len(candidates), device=candidates.device)
    return place_N


def _to_places(rows: Tensor, place_N: Tensor) -> Tensor:
    return torch.where(rows == PADDING, PADDING, place_N[rows.clamp(min=0)])


def _check_ranked(scores_BK: Tensor, targets_BT: Tensor, masked_BM: Tensor) -> None:
    for name, rows in (("targets", targets_BT), ("masked", masked_BM)):
        if rows.ndim != 2 or len(rows) != len(scores_BK):
            raise ValueError(
                f"{name}: found shape {tuple(rows.shape)}, expected [{len(scores_BK)}, …]: one "
                "row a case, padded with -1"
            )
        if rows.numel() and (int(rows.max()) >= scores_BK.shape[1] or int(rows.min()) < PADDING):
            raise ValueError(
                f"{name}: found rows {int(rows.min())}..{int(rows.max())}, expected "
                f"0..{scores_BK.shape[1] - 1} or -1 for padding"
            )
    if bool(scores_BK.isnan().any()):
        cases = scores_BK.isnan().any(1).nonzero().squeeze(1)
        raise ValueError(
            f"scores: found NaN in {len(cases)} cases (the first is {int(cases[0])}), expected "
            "numbers; check the vectors for overflow or a division by zero"
        )


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k: found {k}, expected at least 1")
