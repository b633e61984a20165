"""Places of a list that are kept for items that nobody chose yet.

A softmax puts each item where the log lets expect it. Of the new items each alone is unlikely, so
that hardly one gets into a list of twenty, although together they are many choices: who wants them
found keeps places for them, most where new items are likely. Three things are learnt on what a
blend is learnt on: the chance p that a choice is a new item, a logistic regression on how many of
the user's latest choices were; and the shares F_new(q) and F_known(q) of new and of known targets
that are among the first q of their kind. A list of k then has the q new items that maximise

    p (1 + new_weight) F_new(q) + (1 - p) F_known(k - q).

Shapes: B cases, N catalogue items, L events, T targets, W numbers of latest events, Q = k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.blend_tastes import log_odds_of_new
from pretrain.cases import Cases, latest_events
from pretrain.metrics import PADDING

BEHIND = torch.iinfo(torch.int64).max
"""Rank of a target that is none."""
CHANCE_L2 = 1e-3


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """How places for new items are learnt."""

    new_weight: float | None = None
    """What finding a new item is worth beyond what finding a known one is: 0 as much, 1 twice as
    much; null: no places are kept."""

    k: int = 20
    """Length of the list."""

    latest: tuple[int, ...] = (1, 3, 10, 30)
    """Numbers of latest events in which new items are counted; histories must be in order of
    time."""

    max_cases: int = 4000
    """Most cases that are learnt on, of each question."""

    def __post_init__(self) -> None:
        if self.new_weight is not None and self.new_weight < 0:
            raise ValueError(f"new_weight: found {self.new_weight}, expected 0 or more, or null")
        for name in ("k", "max_cases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not self.latest or min(self.latest) < 1:
            raise ValueError(f"latest: found {self.latest}, expected numbers of events from 1 up")


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many of the first k places are for new items."""

    k: int
    new_weight: float
    latest: tuple[int, ...]
    chance: tuple[float, ...]
    """Of the log odds that a choice is new: the constant, then the weight of each of `latest`."""

    new_found: tuple[float, ...]
    """F_new of 0 to k places, rising ever slower."""

    known_found: tuple[float, ...]
    """F_known of 0 to k places."""

    def __post_init__(self) -> None:
        sizes = {
            "chance": len(self.latest) + 1,
            "new_found": self.k + 1,
            "known_found": self.k + 1,
        }
        for name, size in sizes.items():
            found = getattr(self, name)
            if len(found) != size or not np.isfinite(found).all():
                raise ValueError(f"places.{name}: found {found}, expected {size} finite numbers")

    def numbers(self, history_BL: Tensor, *, new_N: Tensor) -> Tensor:
        """Places for new items of each case, [B]."""
        odds_BF = odds_of_new(history_BL, new_N=new_N, latest=self.latest)
        chance_B1 = torch.sigmoid(odds_BF @ torch.tensor(self.chance))[:, None]
        new_Q, known_Q = torch.tensor(self.new_found), torch.tensor(self.known_found)
        worth_BQ = chance_B1 * (1 + self.new_weight) * new_Q + (1 - chance_B1) * known_Q.flip(0)
        return worth_BQ.argmax(1)

    def keep(
        self, scores_BN: Tensor, history_BL: Tensor, *, new_N: Tensor, closed_BN: Tensor
    ) -> Tensor:
        """Scores that rank the best new items of the kept places and the best known ones first.

        The order among new items and among known ones stays, and so does that of the list by score.
        Where a kind has fewer open items than places, the next by score take them.
        """
        number_B = self.numbers(history_BL, new_N=new_N)
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


@dataclass(frozen=True)
class Ranked:
    """Targets of one question, ranked among their kind; [M] each, over all cases' targets."""

    rank_M: Tensor
    new_M: Tensor
    odds_MF: Tensor
    """What the chance of a new item is learnt from."""

    weight_M: Tensor
    """Users weigh the same, and so do the cases of one and the targets of a case."""

    kind_weight_M: Tensor
    """The same within each kind."""


def learn_places(questions: list[Ranked], config: PlaceConfig) -> Places:
    """The chance of a new item and what places are worth; each question weighs the same.

    Raises:
        ValueError: no target is new, or none is known.
    """
    assert config.new_weight is not None
    rank_M, new_M, odds_MF, weight_M, kind_weight_M = (
        torch.cat([getattr(one, name) for one in questions])
        for name in ("rank_M", "new_M", "odds_MF", "weight_M", "kind_weight_M")
    )
    if bool(new_M.all()) or not bool(new_M.any()):
        raise ValueError(
            f"places: found {int(new_M.sum())} new items among {len(new_M)} targets, expected some "
            "and not all: how many places they are worth cannot be learnt; set new_weight to null"
        )
    curves = {
        kind: found_curve(rank_M[mask_M], kind_weight_M[mask_M], k=config.k)
        for kind, mask_M in (("new", new_M), ("known", ~new_M))
    }
    return Places(
        k=config.k,
        new_weight=config.new_weight,
        latest=config.latest,
        chance=fit_chance(odds_MF, new_M, weight_M),
        new_found=curves["new"],
        known_found=curves["known"],
    )


def odds_of_new(history_BL: Tensor, *, new_N: Tensor, latest: tuple[int, ...]) -> Tensor:
    """1, then the log odds of new items among so many latest events, [B, 1 + W]."""
    columns = [torch.ones(len(history_BL))]
    for count in latest:
        late_BL = history_BL.masked_fill(~latest_events(history_BL, count), PADDING)
        columns.append(log_odds_of_new(late_BL, new_N=new_N))
    return torch.stack(columns, dim=1)


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
    rank_BT = torch.full_like(targets_BT, BEHIND)
    for t in range(targets_BT.shape[1]):
        case = (targets_BT[:, t] != PADDING).nonzero().flatten()
        target = targets_BT[case, t]
        above_RN = open_BN[case] >= open_BN[case, target][:, None]
        same_RN = is_new_N == is_new_N[target][:, None]
        rank_BT[case, t] = (above_RN & same_RN).sum(1) - 1
    return rank_BT


def ranked_targets(
    rank_BT: Tensor, asked: Cases, *, new_N: Tensor, latest: tuple[int, ...]
) -> Ranked:
    """The targets of all cases, one after the other, with their weights."""
    case_M, place_M = (asked.targets_BT != PADDING).nonzero(as_tuple=True)
    new_M = new_N.bool()[asked.targets_BT[case_M, place_M]]
    user_M = asked.users_B[case_M]
    kind_weight_M = torch.zeros(len(new_M), dtype=torch.float64)
    for mask_M in (new_M, ~new_M):
        kind_weight_M[mask_M] = _even_weights(user_M[mask_M], case_M[mask_M])
    odds_BF = odds_of_new(asked.history_BL, new_N=new_N, latest=latest)
    return Ranked(
        rank_M=rank_BT[case_M, place_M],
        new_M=new_M,
        odds_MF=odds_BF[case_M],
        weight_M=_even_weights(user_M, case_M),
        kind_weight_M=kind_weight_M,
    )


def found_curve(rank_M: Tensor, weight_M: Tensor, *, k: int) -> tuple[float, ...]:
    """Share of the weights at ranks below 0 to k, made concave from above: [Q].

    A share counted on few targets rises in steps, and between two steps a place would seem worth
    nothing; the least concave curve above them spreads a step over the places before it.
    """
    total = float(weight_M.sum())
    share_Q = np.array([float(weight_M[rank_M < q].sum()) / total for q in range(k + 1)])
    return tuple(concave(share_Q).tolist())


def concave(values_Q: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least concave curve that is nowhere below these values."""
    corners: list[int] = []
    for q in range(len(values_Q)):
        while len(corners) > 1 and _slope(values_Q, corners[-2], corners[-1]) <= _slope(
            values_Q, corners[-2], q
        ):
            corners.pop()
        corners.append(q)
    return np.interp(np.arange(len(values_Q)), corners, values_Q[corners])


def fit_chance(odds_MF: Tensor, new_M: Tensor, weight_M: Tensor) -> tuple[float, ...]:
    """Weights of a logistic regression; all but the constant are held down a little."""
    weight_F = torch.zeros(odds_MF.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_F], max_iter=100, line_search_fn="strong_wolfe")
    share_M = weight_M.double() / weight_M.double().sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(
            odds_MF.double() @ weight_F, new_M.double(), weight=share_M, reduction="sum"
        )
        loss = loss + CHANCE_L2 * weight_F[1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return tuple(weight_F.detach().tolist())


def _even_weights(user_M: Tensor, case_M: Tensor) -> Tensor:
    """Sum 1, the same for every user; within one the same for every case, and so for targets."""
    _, user_of_M = np.unique(user_M.numpy(), return_inverse=True)
    _, first_C, case_of_M, targets_C = np.unique(
        case_M.numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    cases_U = np.bincount(user_of_M[first_C])
    weight_M = 1 / (len(cases_U) * cases_U[user_of_M] * targets_C[case_of_M])
    return torch.from_numpy(weight_M)


def _slope(values_Q: NDArray[np.float64], start: int, stop: int) -> float:
    return float((values_Q[stop] - values_Q[start]) / (stop - start))
