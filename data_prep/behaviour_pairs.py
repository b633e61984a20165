"""Pairs of items that belong together by what users did; of training events alone.

Shapes: E events, J candidate pairs, M distinct pairs (trigger, target).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.events import EventLog

Int64 = NDArray[np.int64]
MS_PER_MINUTE = 60_000


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which items belong together by behaviour (QARM, arXiv 2411.11739)."""

    session_minutes: int = 30
    """Two events of a user with no longer pause between one and the next are of one session; all
    its pairs count, both ways."""

    recent: int = 10
    """A target's trigger is that one of the user's so many latest items before it which users
    chose together with it most often for its popularity (cosine); 0: sessions alone."""

    max_pairs_per_item: int = 20
    """Partners that an item keeps as a trigger, and again as a target, those met most often: a
    popular item is in many pairs by chance."""

    max_count: int = 8
    """A pair that was met more often weighs no more than this."""

    def __post_init__(self) -> None:
        if self.session_minutes < 0 or self.recent < 0:
            raise ValueError(
                "data.pairs: session_minutes and recent must not be negative, got "
                f"{self.session_minutes} and {self.recent}"
            )
        if self.max_pairs_per_item < 1 or self.max_count < 1:
            raise ValueError(
                "data.pairs: max_pairs_per_item and max_count must be at least 1, got "
                f"{self.max_pairs_per_item} and {self.max_count}"
            )


@dataclass(frozen=True)
class ItemPairs:
    """Distinct pairs of different items, ordered by (trigger, target)."""

    triggers: Int64
    """[M] item rows."""
    targets: Int64
    """[M] item rows."""
    weights: NDArray[np.float64]
    """[M] how often a pair was met, capped."""

    def __len__(self) -> int:
        return len(self.triggers)

    def target_probability(self, num_items: int) -> NDArray[np.float64]:
        """[N] how likely a pair drawn by weight has each item as its target."""
        drawn = np.bincount(self.targets, weights=self.weights, minlength=num_items)
        probability: NDArray[np.float64] = drawn.astype(np.float64) / max(float(drawn.sum()), 1e-12)
        return probability


def behaviour_pairs(log: EventLog, config: PairConfig) -> ItemPairs:
    """Same-session pairs and trigger → target pairs of a log in one count."""
    found = [_session_pairs(log, config)]
    if config.recent:
        found.append(_trigger_pairs(log, recent=config.recent))
    triggers, targets = (np.concatenate(columns) for columns in zip(*found, strict=True))
    size = int(log.item_rows.max(initial=0)) + 1
    key, counts = np.unique(triggers * size + targets, return_counts=True)
    triggers, targets = key // size, key % size
    kept = _among_most(triggers, counts, most=config.max_pairs_per_item)
    kept &= _among_most(targets, counts, most=config.max_pairs_per_item)
    weights = np.minimum(counts, config.max_count).astype(np.float64)
    return ItemPairs(triggers[kept], targets[kept], weights[kept])


def _session_pairs(log: EventLog, config: PairConfig) -> tuple[Int64, Int64]:
    """[J], [J] items of one session, at most `max_pairs_per_item` events apart, both ways."""
    rows, users = log.item_rows.astype(np.int64), log.user_rows()
    pause = np.diff(log.times, prepend=log.times[:1]) > config.session_minutes * MS_PER_MINUTE
    starts = pause | (np.diff(users, prepend=users[:1]) != 0)
    session = np.cumsum(starts)
    left: list[Int64] = []
    right: list[Int64] = []
    for apart in range(1, config.max_pairs_per_item + 1):
        same = (session[apart:] == session[:-apart]) & (rows[apart:] != rows[:-apart])
        if not (session[apart:] == session[:-apart]).any():
            break
        left.append(rows[:-apart][same])
        right.append(rows[apart:][same])
    if not left:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(left + right), np.concatenate(right + left)


def _trigger_pairs(log: EventLog, *, recent: int) -> tuple[Int64, Int64]:
    """[J], [J] for every event with a past: the most related of the latest items, and its own."""
    rows, users = log.item_rows.astype(np.int64), log.user_rows()
    size = int(rows.max(initial=0)) + 1
    offsets = [apart for apart in range(1, recent + 1) if apart < len(log)]

    def pair_keys(apart: int) -> tuple[NDArray[np.bool_], Int64]:
        before, after = slice(None, -apart), slice(apart, None)
        earlier = (users[before] == users[after]) & (log.times[before] < log.times[after])
        return earlier & (rows[before] != rows[after]), rows[before] * size + rows[after]

    met = [key[valid] for valid, key in map(pair_keys, offsets)]
    if not met or not sum(map(len, met)):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    keys, counts = np.unique(np.concatenate(met), return_counts=True)
    popularity = np.bincount(rows, minlength=size)
    score = counts / np.sqrt(popularity[keys // size] * popularity[keys % size])
    best = np.full(len(log), -1.0)
    trigger = np.full(len(log), -1)
    for apart in offsets:  # the latest first: an older one must be better
        valid, key = pair_keys(apart)
        place = np.searchsorted(keys, key).clip(max=len(keys) - 1)
        value = np.where(valid, score[place], -1.0)
        better = value > best[apart:]
        best[apart:][better] = value[better]
        trigger[apart:][better] = rows[:-apart][better]
    chosen = trigger >= 0
    return trigger[chosen], rows[chosen]


def _among_most(owners: Int64, counts: Int64, *, most: int) -> NDArray[np.bool_]:
    """[M] whether a pair is among its owner's `most` most frequent ones, ties by order."""
    order = np.lexsort((np.arange(len(owners)), -counts, owners))
    sorted_owners = owners[order]
    first = np.searchsorted(sorted_owners, sorted_owners)
    kept = np.empty(len(owners), bool)
    kept[order] = np.arange(len(owners)) - first < most
    return kept
