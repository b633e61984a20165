"""Items with the same content, and pictures that look alike.

Shapes: I items, M distinct perceptual hashes.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.events import Int64

UInt64 = NDArray[np.uint64]

NEAR_DISTANCE = 4
"""Bits of 64 in which the hashes of near duplicates differ at most."""
_BANDS = 6
_MOST_STEPS = 2000
_EDGES_KEPT = 4_000_000


@dataclass(frozen=True)
class DuplicateGroups:
    """Items that are copies of one another."""

    num_groups: int
    num_items: int
    largest: list[Int64]
    """Item rows of the largest groups, largest first."""

    @property
    def num_spare(self) -> int:
        """Items that would go if each group kept one."""
        return self.num_items - self.num_groups


def exact_groups(hash_I: UInt64, present_I: NDArray[np.bool_], *, shown: int) -> DuplicateGroups:
    """Items whose content hash is the same.

    Args:
        hash_I: Content hash of each item.
        present_I: Which items have the content; the hashes of the others mean nothing.
        shown: Groups to list.
    """
    rows = np.flatnonzero(present_I)
    return _groups(hash_I[rows], rows, shown=shown)


def near_groups(
    phash_I: UInt64,
    present_I: NDArray[np.bool_],
    *,
    same_I: UInt64 | None,
    shown: int,
    max_distance: int = NEAR_DISTANCE,
) -> DuplicateGroups:
    """Items linked by pictures that look alike, whose pictures are not all the same file.

    A group holds whatever a chain of near pairs links, so that its ends may differ by more. Those
    that are listed begin with one item of each different picture.

    Args:
        phash_I: Perceptual hash of each item's picture.
        present_I: Which items have a picture to compare.
        same_I: Exact hash of the pictures; None where it is not known, and a perceptual hash
            stands for it.
        shown: Groups to list.
        max_distance: Bits in which near hashes differ at most.
    """
    rows = np.flatnonzero(present_I)
    phash_M, place = np.unique(phash_I[rows], return_inverse=True)
    linked = linked_hashes(phash_M, max_distance=max_distance)[place]
    exact_I = phash_I if same_I is None else same_I
    mixed = _num_kinds(linked, exact_I[rows]) > 1
    keep = mixed[linked]
    groups = _groups(linked[keep].astype(np.uint64), rows[keep], shown=shown)
    ordered = [_distinct_first(group, exact_I[group]) for group in groups.largest]
    return dataclasses.replace(groups, largest=ordered)


def linked_hashes(phash_M: UInt64, *, max_distance: int) -> Int64:
    """Number the sets of distinct hashes that chains of near pairs link; [M] the set of each."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = len(phash_M)
    label_M = np.arange(size)
    lefts: list[Int64] = []
    rights: list[Int64] = []
    waiting = 0

    def merged() -> Int64:
        """Links become labels, so that a large cluster's pairs do not fill the memory."""
        ends = (label_M[np.concatenate(lefts)], label_M[np.concatenate(rights)])
        links = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(size, size))
        lefts.clear()
        rights.clear()
        set_of: Int64 = connected_components(links, directed=False)[1].astype(np.int64)
        return set_of[label_M]

    for left, right in near_pairs(phash_M, max_distance=max_distance):
        lefts.append(left)
        rights.append(right)
        waiting += len(left)
        if waiting > _EDGES_KEPT:
            label_M, waiting = merged(), 0
    return merged() if waiting else label_M


def near_pairs(phash_M: UInt64, *, max_distance: int) -> Iterator[tuple[Int64, Int64]]:
    """Every pair of hashes at most so far apart, as arrays of places; some come several times.

    The 64 bits are cut into bands. Hashes that differ in d bits agree on all but d bands, so only
    those that agree on some choice of that many bands are compared: with 6 bands and d = 4, 15
    choices of 21 bits or more, which for evenly spread hashes is M² / 2¹⁸ comparisons in all.

    Where more than `_MOST_STEPS` hashes agree on a choice, each is compared with that many that
    follow it and not with all, so that a million nearly blank pictures end too; the other choices
    still find most of such pairs.
    """
    bands = max(_BANDS, max_distance + 1)
    edges = np.linspace(0, 64, bands + 1).astype(int)
    masks = [sum(1 << bit for bit in range(low, high)) for low, high in itertools.pairwise(edges)]
    for chosen in itertools.combinations(masks, bands - max_distance):
        key_M = phash_M & np.uint64(sum(chosen))
        order = np.argsort(key_M, kind="stable")
        sorted_key, sorted_hash = key_M[order], phash_M[order]
        first = np.arange(len(order))
        for step in range(1, _MOST_STEPS + 1):
            first = first[: np.searchsorted(first, len(order) - step)]
            first = first[sorted_key[first] == sorted_key[first + step]]
            if not len(first):
                break
            near = is_near(sorted_hash[first], sorted_hash[first + step], max_distance=max_distance)
            if near.any():
                yield order[first[near]], order[first[near] + step]


def is_near(left: UInt64, right: UInt64, *, max_distance: int) -> NDArray[np.bool_]:
    """Whether two hashes differ in at most so many bits."""
    rest = left ^ right
    for _ in range(max_distance):
        rest &= rest - np.uint64(1)  # clears the lowest bit that is set
    near: NDArray[np.bool_] = rest == 0
    return near


def _num_kinds(label: Int64, kind: UInt64) -> Int64:
    """How many kinds there are under each label."""
    order = np.lexsort((kind, label))
    label, kind = label[order], kind[order]
    is_new = np.ones(len(label), bool)
    is_new[1:] = (label[1:] != label[:-1]) | (kind[1:] != kind[:-1])
    return np.bincount(label[is_new])


def _distinct_first(rows: Int64, kind: UInt64) -> Int64:
    """The first row of every kind, then the others."""
    first = np.sort(np.unique(kind, return_index=True)[1])
    return np.concatenate([rows[first], np.delete(rows, first)])


def _groups(label: UInt64, rows: Int64, *, shown: int) -> DuplicateGroups:
    """Rows of the same label, where there are at least two."""
    order = np.argsort(label, kind="stable")
    _, starts, counts = np.unique(label[order], return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    first_row = rows[order[starts[several]]]
    listed = several[np.lexsort((first_row, -counts[several]))][:shown]
    return DuplicateGroups(
        num_groups=len(several),
        num_items=int(counts[several].sum()),
        largest=[rows[order[starts[one] : starts[one] + counts[one]]] for one in listed],
    )
