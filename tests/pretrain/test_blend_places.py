"""Places for new items: lists by their definition, numbers by trying all of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pretrain.blend_places import (
    PlaceConfig,
    Places,
    best_numbers,
    closed_items,
    groups_of,
    ranks_in_kind,
    values_of_numbers,
)
from pretrain.cases import Cases
from pretrain.metrics import PADDING, ranks_of_targets, recall_at_k, user_means

NUM_ITEMS, K = 30, 6
SHARES = (0.25, 0.75)
NEW_N = (torch.arange(NUM_ITEMS) % 3 == 0).float()


def some_cases(*, count: int = 40, seed: int = 0) -> Cases:
    """Histories of 0 to 5 events, one or two targets outside them, a user for every four cases."""
    rng = np.random.default_rng(seed)
    history_BL = np.full((count, 5), PADDING)
    targets_BT = np.full((count, 2), PADDING)
    for case in range(count):
        drawn = rng.permutation(NUM_ITEMS)
        length, num_targets = rng.integers(0, 6), rng.integers(1, 3)
        history_BL[case, :length] = drawn[:length]
        targets_BT[case, :num_targets] = drawn[5 : 5 + num_targets]
    history = torch.from_numpy(history_BL)
    return Cases(
        users_B=torch.arange(count) // 4,
        history_BL=history,
        targets_BT=torch.from_numpy(targets_BT),
        history_BN=sp.csr_matrix((count, NUM_ITEMS), dtype=np.float32),
        masked_BM=history,
        times_BL=torch.zeros_like(history),
        at_times_B=torch.ones(count).long(),
    )


def scores_of(asked: Cases, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(asked.users_B), NUM_ITEMS, generator=generator)


def closed(asked: Cases, ranked_N: Tensor | None = None) -> Tensor:
    everything = slice(0, len(asked.users_B))
    return closed_items(asked, everything, ranked_N=ranked_N, num_items=NUM_ITEMS)


def test_the_latest_events_alone_are_asked() -> None:
    asked = some_cases()
    late = asked.latest(2)
    for whole_L, late_L, row in zip(
        asked.history_BL, late.history_BL, late.history_BN, strict=True
    ):
        expected = [one for one in whole_L.tolist() if one != PADDING][-2:]
        assert [one for one in late_L.tolist() if one != PADDING] == expected
        assert sorted(row.indices) == sorted(expected)
        assert set(row.data) <= {1.0}
    assert torch.equal(late.masked_BM, asked.masked_BM), "what is seen stays masked"


def test_groups_are_shares_of_new_items_among_the_latest() -> None:
    histories = torch.tensor([[0, 1, 2, 4], [0, 3, 1, PADDING], [6, 9, 0, 3], [PADDING] * 4])
    found = groups_of(histories, new_N=NEW_N, latest=2, shares=SHARES)
    assert found.tolist() == [0, 1, 2, 0]


def test_a_list_has_the_best_of_both_kinds_and_nothing_that_is_closed() -> None:
    asked = some_cases()
    places = Places(k=K, latest=2, shares=SHARES, numbers=(1, 2, 5))
    ranked_N = torch.arange(NUM_ITEMS) < 25
    scores_BN, closed_BN = scores_of(asked), closed(asked, ranked_N)
    kept_BN = places.keep(scores_BN, asked.history_BL, new_N=NEW_N, closed_BN=closed_BN)
    groups_B = groups_of(asked.history_BL, new_N=NEW_N, latest=2, shares=SHARES)
    for case, group in enumerate(groups_B.tolist()):
        best_first = [
            item
            for item in scores_BN[case].argsort(descending=True).tolist()
            if not closed_BN[case, item]
        ]
        number = places.numbers[group]
        new = [item for item in best_first if NEW_N[item]][:number]
        known = [item for item in best_first if not NEW_N[item]][: K - number]
        expected = sorted(new + known, key=best_first.index)
        found = kept_BN[case].masked_fill(closed_BN[case], -torch.inf).argsort(descending=True)
        assert found[:K].tolist() == expected
        rest = [item for item in best_first if item not in expected]
        assert found[K : len(best_first)].tolist() == rest


def test_places_that_no_new_item_can_take_go_to_the_best_of_the_rest() -> None:
    places = Places(k=4, latest=2, shares=(), numbers=(4,))
    scores_BN = torch.tensor([[5.0, 9.0, 8.0, 7.0, 1.0, 0.0]])
    new_N = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    none_closed = torch.zeros(1, 6, dtype=torch.bool)
    found = places.keep(scores_BN, torch.tensor([[1]]), new_N=new_N, closed_BN=none_closed)
    assert found.argsort(descending=True).tolist() == [[0, 5, 1, 2, 3, 4]]


def test_ranks_in_a_kind_count_ties_above() -> None:
    scores_BN = torch.tensor([[3.0, 9.0, 8.0, 3.0, 7.0, 1.0, 4.0]])
    new_N = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    closed_BN = torch.tensor([[False, True, False, False, False, False, False]])
    targets = torch.tensor([[0, 4, PADDING]])
    found = ranks_in_kind(scores_BN, targets, new_N=new_N, closed_BN=closed_BN)
    assert found[0, :2].tolist() == [2, 1]
    assert found[0, 2] > NUM_ITEMS


@pytest.mark.parametrize("numbers", [(0, 0, 0), (1, 2, 5), (6, 6, 6)])
def test_a_value_is_what_the_lists_then_recall(numbers: tuple[int, ...]) -> None:
    asked, config = some_cases(), PlaceConfig(new_weight=0.7, k=K, latest=2, shares=SHARES)
    scores_BN, closed_BN = scores_of(asked), closed(asked)
    new_BT = NEW_N.bool()[asked.targets_BT.clamp(min=0)] & (asked.targets_BT != PADDING)
    value_GQ = values_of_numbers(
        ranks_in_kind(scores_BN, asked.targets_BT, new_N=NEW_N, closed_BN=closed_BN),
        new_BT=new_BT,
        users_B=asked.users_B,
        groups_B=groups_of(asked.history_BL, new_N=NEW_N, latest=2, shares=SHARES),
        num_groups=3,
        config=config,
    )
    places = Places(k=K, latest=2, shares=SHARES, numbers=numbers)
    kept_BN = places.keep(scores_BN, asked.history_BL, new_N=NEW_N, closed_BN=closed_BN)

    def recall(targets_BT: Tensor) -> float:
        some_B = (targets_BT != PADDING).any(1)
        ranks_BT = ranks_of_targets(kept_BN[some_B], targets_BT[some_B], asked.masked_BM[some_B])
        recall_B = recall_at_k(ranks_BT, k=K)
        return float(user_means(recall_B.double(), users_B=asked.users_B[some_B]).mean())

    expected = recall(asked.targets_BT) + 0.7 * recall(
        asked.targets_BT.masked_fill(~new_BT, PADDING)
    )
    assert sum(value_GQ[g, q] for g, q in enumerate(numbers)) == pytest.approx(expected, abs=1e-6)


def test_numbers_are_the_best_that_never_fall() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        value_GQ = rng.random((3, 5))
        rising = [one for one in itertools.product(range(5), repeat=3) if list(one) == sorted(one)]
        best = max(rising, key=lambda one: sum(value_GQ[g, q] for g, q in enumerate(one)))
        assert best_numbers(value_GQ) == best
    assert best_numbers(np.ones((3, 5))) == (0, 0, 0), "no place for nothing"


def test_settings_out_of_range_are_refused() -> None:
    config = PlaceConfig()
    for words, message in (
        ({"new_weight": -1.0}, "new_weight"),
        ({"k": 0}, "k: found 0"),
        ({"shares": (0.5, 0.2)}, "rising"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **words)
    for numbers in ((1, 2), (1, 2, 7)):
        with pytest.raises(ValueError, match="expected 3 numbers from 0 to 6"):
            Places(k=K, latest=2, shares=SHARES, numbers=numbers)
