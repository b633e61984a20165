"""Places of a list that are kept for items that nobody chose yet.

A softmax puts each item where the log lets expect it. Of the new items each alone is unlikely, so
that hardly one gets into a list of twenty, although together they are many choices: who wants them
found keeps places for them. How many depends on how many of the user's latest choices were new. The
numbers are learnt on what a blend is learnt on: those that give the most recall of all targets plus
`new_weight` times the recall of new ones.

Shapes: B cases, N catalogue items, T targets, G groups of cases, Q = k + 1 numbers of places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.cases import Cases
from pretrain.metrics import PADDING

FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """How places for new items are learnt."""

    new_weight: float = 0.0
    """What recall of new items is worth against recall of all; 0: no places are kept."""

    k: int = 20
    """Length of the list."""

    latest: int = 10
    """Latest events of a history whose share of new items parts the cases into groups; histories
    must be in order of time."""

    shares: tuple[float, ...] = (0.05, 0.15, 0.25, 0.45)
    """Where the groups meet, rising."""

    max_cases: int = 4000
    """Most cases that are learnt on, of all questions together."""

    def __post_init__(self) -> None:
        if self.new_weight < 0:
            raise ValueError(f"new_weight: found {self.new_weight}, expected 0 (off) or more")
        for name in ("k", "latest", "max_cases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares: found {self.shares}, expected rising shares")


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many of the first k places are for new items, by group of cases."""

    k: int
    latest: int
    shares: tuple[float, ...]
    numbers: tuple[int, ...]
    """One a group; never fewer where more of the latest choices were new."""

    def __post_init__(self) -> None:
        if len(self.numbers) != len(self.shares) + 1 or not all(
            0 <= number <= self.k for number in self.numbers
        ):
            raise ValueError(
                f"places: found {self.numbers}, expected {len(self.shares) + 1} numbers from 0 to "
                f"{self.k}"
            )

    def keep(
        self, scores_BN: Tensor, history_BL: Tensor, *, new_N: Tensor, closed_BN: Tensor
    ) -> Tensor:
        """Scores that rank the best new items of the kept places and the best known ones first.

        The order among new items and among known ones stays, and so does that of the list by score.
        Where a kind has fewer open items than places, the next by score take them.
        """
        groups_B = groups_of(history_BL, new_N=new_N, latest=self.latest, shares=self.shares)
        number_B = torch.tensor(self.numbers)[groups_B]
        listed_BN = torch.zeros_like(closed_BN)
        is_new_N = new_N.bool()
        for kind_N, count_B in ((is_new_N, number_B), (~is_new_N, self.k - number_B)):
            open_BN = scores_BN.masked_fill(closed_BN | ~kind_N, -torch.inf)
            best = open_BN.topk(min(self.k, open_BN.shape[1]), dim=1)
            place_K = torch.arange(best.indices.shape[1])
            chosen_BK = (place_K < count_B[:, None]) & (best.values > -torch.inf)
            case, place = chosen_BK.nonzero(as_tuple=True)
            listed_BN[case, best.indices[case, place]] = True
        low_B1, high_B1 = scores_BN.aminmax(dim=1, keepdim=True)
        return scores_BN + listed_BN * (high_B1 - low_B1 + 1)


def groups_of(
    history_BL: Tensor, *, new_N: Tensor, latest: int, shares: tuple[float, ...]
) -> Tensor:
    """Group of each case by the share of new items among its latest events, [B]; none is 0."""
    seen_BL = history_BL != PADDING
    late_BL = seen_BL & (seen_BL.sum(1, keepdim=True) - seen_BL.cumsum(1) < latest)
    new_B = (late_BL & new_N.bool()[history_BL.clamp(min=0)]).sum(1)
    share_B = new_B / late_BL.sum(1).clamp(min=1)
    return torch.bucketize(share_B, torch.tensor(shares), right=True)


def closed_items(asked: Cases, cases: slice, *, ranked_N: Tensor | None, num_items: int) -> Tensor:
    """What is never proposed to these cases, masked or not ranked at all; bool [B, N]."""
    masked_BM = asked.masked_BM[cases]
    closed_BN = torch.zeros(len(masked_BM), num_items, dtype=torch.bool)
    case, place = (masked_BM != PADDING).nonzero(as_tuple=True)
    closed_BN[case, masked_BM[case, place]] = True
    return closed_BN if ranked_N is None else closed_BN | ~ranked_N


def ranks_in_kind(
    scores_BN: Tensor, targets_BT: Tensor, *, new_N: Tensor, closed_BN: Tensor
) -> Tensor:
    """Rank of each target among open items of its kind, new or known, ties above it; i64 [B, T].

    Padded targets are behind everything.
    """
    is_new_N = new_N.bool()
    open_BN = scores_BN.masked_fill(closed_BN, -torch.inf)
    rank_BT = torch.full_like(targets_BT, FAR)
    for t in range(targets_BT.shape[1]):
        case = (targets_BT[:, t] != PADDING).nonzero().flatten()
        target = targets_BT[case, t]
        above_RN = open_BN[case] >= open_BN[case, target][:, None]
        same_RN = is_new_N == is_new_N[target][:, None]
        rank_BT[case, t] = (above_RN & same_RN).sum(1) - 1
    return rank_BT


def values_of_numbers(
    rank_BT: Tensor,
    *,
    new_BT: Tensor,
    users_B: Tensor,
    groups_B: Tensor,
    num_groups: int,
    config: PlaceConfig,
) -> NDArray[np.float64]:
    """What each number of places is worth in each group, [G, Q]: users weigh the same.

    The sum over the groups is recall@k plus `new_weight` times recall@k of new targets, both first
    within a user.
    """
    number_Q = torch.arange(config.k + 1)
    room_BTQ = torch.where(new_BT[..., None], number_Q, config.k - number_Q)
    found_BTQ = (rank_BT[..., None] < room_BTQ).double()
    present_BT = rank_BT != FAR
    value_BQ = torch.zeros(len(rank_BT), config.k + 1, dtype=torch.float64)
    for counted_BT, weight in ((present_BT, 1.0), (present_BT & new_BT, config.new_weight)):
        has_B = counted_BT.any(1)
        if not has_B.any():
            continue
        _, user_B = np.unique(users_B[has_B].numpy(), return_inverse=True)
        cases_U = torch.from_numpy(np.bincount(user_B))
        weight_B = weight / (len(cases_U) * cases_U[torch.from_numpy(user_B)])
        counted = counted_BT[has_B]
        recall_BQ = (found_BTQ[has_B] * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)
        value_BQ[has_B] += weight_B[:, None] * recall_BQ
    value_GQ = torch.zeros(num_groups, config.k + 1, dtype=torch.float64)
    return np.asarray(value_GQ.index_add_(0, groups_B, value_BQ).numpy())


def best_numbers(value_GQ: NDArray[np.float64]) -> tuple[int, ...]:
    """Numbers that never fall from group to group with the highest sum of values.

    By dynamic programming; of equal sums the one with fewer places.
    """
    best_GQ = value_GQ.copy()
    for g in range(1, len(value_GQ)):
        best_GQ[g] += np.maximum.accumulate(best_GQ[g - 1])
    numbers: list[int] = []
    limit = value_GQ.shape[1]
    for row_Q in best_GQ[::-1]:
        limit = int(np.argmax(row_Q[:limit])) + 1
        numbers.append(limit - 1)
    return tuple(reversed(numbers))
