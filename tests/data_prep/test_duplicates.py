import itertools

import numpy as np
import pytest

from data_prep import duplicates
from data_prep.duplicates import exact_groups, is_near, linked_hashes, near_groups, near_pairs


def hashes_with_neighbours(count: int, *, flips: int, seed: int = 0) -> np.ndarray:
    """Random hashes, a third of them copies of others with up to `flips` bits changed."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 2**64, count, dtype=np.uint64)
    copies = base[random.integers(0, count, count // 2)]
    for changed in range(flips):
        bit = np.uint64(1) << random.integers(0, 64, len(copies), dtype=np.uint64)
        copies = np.where(random.integers(0, flips, len(copies)) >= changed, copies ^ bit, copies)
    return np.unique(np.concatenate([base, copies]))


def brute_force_pairs(hashes: np.ndarray, max_distance: int) -> set[tuple[int, int]]:
    pairs = set()
    for row, one in enumerate(hashes):
        bits = np.unpackbits((hashes[row + 1 :] ^ one).view(np.uint8).reshape(-1, 8), axis=1)
        near = np.flatnonzero(bits.sum(1) <= max_distance) + row + 1
        pairs |= {(row, int(other)) for other in near}
    return pairs


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    groups: dict[int, set[int]] = {}
    for place, label in enumerate(labels.tolist()):
        groups.setdefault(label, set()).add(place)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("max_distance", [0, 1, 4, 6])
def test_near_pairs_are_those_of_brute_force(max_distance: int) -> None:
    hashes = hashes_with_neighbours(2000, flips=max_distance + 1)
    found = {
        (min(pair), max(pair))
        for left, right in near_pairs(hashes, max_distance=max_distance)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    }
    expected = brute_force_pairs(hashes, max_distance)
    assert found == expected
    assert max_distance == 0 or len(expected) > 200


def test_distance_is_counted_in_bits() -> None:
    zero = np.zeros(65, np.uint64)
    ones = np.array([(1 << bits) - 1 for bits in range(65)], np.uint64)
    assert is_near(zero, ones, max_distance=4).tolist() == [bits <= 4 for bits in range(65)]


@pytest.mark.parametrize("edges_kept", [10, 4_000_000])
def test_chains_of_near_pairs_are_one_set(edges_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_EDGES_KEPT", edges_kept)
    hashes = hashes_with_neighbours(1500, flips=5)
    set_of = list(range(len(hashes)))
    for left, right in brute_force_pairs(hashes, 4):
        old, new = set_of[right], set_of[left]
        set_of = [new if one == old else one for one in set_of]
    found = linked_hashes(hashes, max_distance=4)
    assert partition(found) == partition(np.array(set_of))


def test_a_cluster_that_shares_most_bands_is_one_set() -> None:
    chain = np.arange(1500, dtype=np.uint64)
    assert len(partition(linked_hashes(chain, max_distance=4))) == 1


def test_exact_groups_are_listed_largest_first_and_leave_out_absent_content() -> None:
    hashes = np.array([7, 0, 5, 7, 0, 5, 5, 9, 0, 0], np.uint64)
    present = hashes != 0
    groups = exact_groups(hashes, present, shown=8)
    assert [rows.tolist() for rows in groups.largest] == [[2, 5, 6], [0, 3]]
    assert (groups.num_groups, groups.num_items, groups.num_spare) == (2, 5, 3)
    assert [len(rows) for rows in exact_groups(hashes, present, shown=1).largest] == [3]


def test_near_groups_leave_out_copies_of_one_file_and_begin_with_different_pictures() -> None:
    far = [0, (1 << 20) - 1, (1 << 40) - 1]
    phash = np.array([far[0], far[0], far[1], far[1], far[1] ^ 3, far[2], far[0]], np.uint64)
    same = np.array([1, 1, 2, 2, 3, 4, 1], np.uint64)
    groups = near_groups(phash, np.ones(7, bool), same_I=same, shown=8)
    assert [rows.tolist() for rows in groups.largest] == [[2, 4, 3]]
    assert (groups.num_groups, groups.num_items) == (1, 3)
    without_last = np.arange(7) != 4
    assert near_groups(phash, without_last, same_I=same, shown=8).num_groups == 0


@pytest.mark.parametrize("count", [0, 1])
def test_no_pictures_are_no_groups(count: int) -> None:
    hashes = np.zeros(count, np.uint64)
    groups = near_groups(hashes, np.ones(count, bool), same_I=None, shown=3)
    assert (groups.num_groups, groups.num_items, groups.largest) == (0, 0, [])


def test_the_bands_meet_every_pair_within_the_distance() -> None:
    """Any 4 changed bits leave at least 2 of the 6 bands as they were."""
    edges = np.linspace(0, 64, 7).astype(int)
    band_of = np.searchsorted(edges, np.arange(64), side="right") - 1
    for changed in itertools.combinations(range(0, 64, 5), 4):
        assert 6 - len({band_of[bit] for bit in changed}) >= 2
