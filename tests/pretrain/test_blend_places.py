"""Places for new items: lists by their definition, curves and chances by counting."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pretrain.blend_places import (
    PlaceConfig,
    Places,
    closed_items,
    concave,
    fit_chance,
    learn_places,
    odds_of_new,
    ranked_targets,
    ranks_in_kind,
)
from pretrain.cases import Cases
from pretrain.metrics import PADDING, ranks_of_targets, recall_at_k, user_means

NUM_ITEMS, K = 30, 6
LATEST = (1, 3)
NEW_N = (torch.arange(NUM_ITEMS) % 3 == 0).float()
EVEN = tuple(np.linspace(0, 1, K + 1).tolist())
PLACES = Places(
    k=K, new_weight=0.0, latest=LATEST, chance=(0.0, 1.0, 1.0), new_found=EVEN, known_found=EVEN
)
"""With straight curves all places go to the likelier kind."""


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


def test_the_odds_of_new_count_the_latest_events_alone() -> None:
    histories = torch.tensor([[0, 1, 2, 4], [0, 3, 1, PADDING], [6, 9, 0, 3], [PADDING] * 4])
    found = odds_of_new(histories, new_N=NEW_N, latest=(1, 2))
    odds = [[-3.0, -5.0], [-3.0, 1.0], [3.0, 5.0], [1.0, 1.0]]  # (new + 1/2) / (known + 1/2)
    expected = [[1.0, *(np.sign(one) * np.log(abs(one)) for one in row)] for row in odds]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_a_list_has_the_best_of_both_kinds_and_nothing_that_is_closed() -> None:
    asked = some_cases()
    places = replace(PLACES, new_found=tuple(np.sqrt(EVEN)), known_found=tuple(np.sqrt(EVEN)))
    ranked_N = torch.arange(NUM_ITEMS) < 25
    scores_BN, closed_BN = scores_of(asked), closed(asked, ranked_N)
    kept_BN = places.keep(scores_BN, asked.history_BL, new_N=NEW_N, closed_BN=closed_BN)
    numbers_B = places.numbers(asked.history_BL, new_N=NEW_N)
    assert len(numbers_B.unique()) > 2
    for case, number in enumerate(numbers_B.tolist()):
        best_first = [
            item
            for item in scores_BN[case].argsort(descending=True).tolist()
            if not closed_BN[case, item]
        ]
        new = [item for item in best_first if NEW_N[item]][:number]
        known = [item for item in best_first if not NEW_N[item]][: K - number]
        expected = sorted(new + known, key=best_first.index)
        found = kept_BN[case].masked_fill(closed_BN[case], -torch.inf).argsort(descending=True)
        assert found[:K].tolist() == expected
        rest = [item for item in best_first if item not in expected]
        assert found[K : len(best_first)].tolist() == rest


def test_the_number_of_places_is_worth_the_most() -> None:
    new_found, known_found = (0.0, 0.5, 0.6, 0.65), (0.0, 0.3, 0.5, 0.6)
    places = Places(
        k=3, new_weight=1.0, latest=(2,), chance=(-0.5, 1.0),
        new_found=new_found, known_found=known_found,
    )  # fmt: skip
    histories = torch.tensor([[0, 3], [0, 1], [1, 2]])
    for history, number in zip(histories, places.numbers(histories, new_N=NEW_N), strict=True):
        new = float(NEW_N[history].sum())
        p = 1 / (1 + np.exp(0.5 - np.log((new + 0.5) / (2.5 - new))))
        worth = [p * 2 * new_found[q] + (1 - p) * known_found[3 - q] for q in range(4)]
        assert number == int(np.argmax(worth))


def test_places_that_no_new_item_can_take_go_to_the_best_of_the_rest() -> None:
    places = replace(PLACES, chance=(9.0, 0.0, 0.0))
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


def test_curves_are_recalls_of_lists_of_one_kind() -> None:
    """Before they are made concave: recall@q of new targets, where all places are for new items."""
    asked = some_cases()
    scores_BN, closed_BN = scores_of(asked), closed(asked)
    rank_BT = ranks_in_kind(scores_BN, asked.targets_BT, new_N=NEW_N, closed_BN=closed_BN)
    ranked = ranked_targets(rank_BT, asked, new_N=NEW_N, latest=LATEST)
    assert float(ranked.weight_M.sum()) == pytest.approx(1)
    found = learn_places([ranked], PlaceConfig(new_weight=0.0, k=K, latest=LATEST))
    present_BT = asked.targets_BT != PADDING
    for kind_N, curve in ((NEW_N.bool(), found.new_found), (~NEW_N.bool(), found.known_found)):
        of_kind_BT = present_BT & kind_N[asked.targets_BT.clamp(min=0)]
        rows_B = of_kind_BT.any(1)
        targets_BT = asked.targets_BT.masked_fill(~of_kind_BT, PADDING)[rows_B]
        only_BN = scores_BN.masked_fill(~kind_N, -1e9)[rows_B]
        ranks_BT = ranks_of_targets(only_BN, targets_BT, asked.masked_BM[rows_B])
        recall_Q = np.array(
            [0.0]
            + [
                float(
                    user_means(
                        recall_at_k(ranks_BT, k=q).double(), users_B=asked.users_B[rows_B]
                    ).mean()
                )
                for q in range(1, K + 1)
            ]
        )
        np.testing.assert_allclose(curve, concave(recall_Q), atol=1e-6)


def test_a_curve_is_made_concave_from_above() -> None:
    np.testing.assert_allclose(
        concave(np.array([0.0, 0.1, 0.1, 0.6, 0.6, 0.7])), [0, 0.2, 0.4, 0.6, 0.65, 0.7]
    )


def test_the_chance_is_that_of_the_choices() -> None:
    rng = np.random.default_rng(0)
    odds_MF = torch.from_numpy(np.c_[np.ones(20_000), rng.normal(size=20_000)]).float()
    chance_M = torch.sigmoid(odds_MF @ torch.tensor([-1.0, 0.8]))
    new_M = torch.from_numpy(rng.random(20_000)) < chance_M
    assert fit_chance(odds_MF, new_M, torch.ones(20_000)) == pytest.approx((-1.0, 0.8), abs=0.05)


def test_one_kind_of_targets_teaches_no_places() -> None:
    asked = some_cases()
    none_new = torch.zeros(NUM_ITEMS)
    ranked = ranked_targets(asked.targets_BT, asked, new_N=none_new, latest=LATEST)
    with pytest.raises(ValueError, match=r"found 0 new items among .* set new_weight to null"):
        learn_places([ranked], PlaceConfig(new_weight=1.0, latest=LATEST))


def test_settings_out_of_range_are_refused() -> None:
    for words, message in (
        ({"new_weight": -1.0}, "new_weight"),
        ({"k": 0}, "k: found 0"),
        ({"latest": (0, 3)}, "latest: found"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(PlaceConfig(), **words)
    for words, message in (
        ({"chance": (1.0, 2.0)}, "expected 3 finite numbers"),
        ({"new_found": (0.0, float("nan"))}, "expected 7 finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(PLACES, **words)
