"""Item pairs against a slow count, and their caps."""

from collections import Counter

import numpy as np
import pytest

from data_prep.behaviour_pairs import MS_PER_MINUTE, PairConfig, behaviour_pairs
from data_prep.events import EventLog


def make_log(users: list[list[tuple[int, int]]]) -> EventLog:
    """Events (item, minute) of each user."""
    events = [event for user in users for event in user]
    return EventLog(
        offsets=np.cumsum([0, *map(len, users)]),
        item_rows=np.array([item for item, _ in events], np.uint32),
        times=np.array([minute for _, minute in events], np.int64) * MS_PER_MINUTE,
        labels=np.ones(len(events), np.int8),
    )


def counted(log: EventLog, config: PairConfig) -> dict[tuple[int, int], float]:
    pairs = behaviour_pairs(log, config)
    keys = zip(pairs.triggers.tolist(), pairs.targets.tolist(), strict=True)
    return dict(zip(keys, pairs.weights.tolist(), strict=True))


def test_items_of_one_session_are_pairs_both_ways() -> None:
    log = make_log([[(1, 0), (2, 10), (3, 39), (4, 200)], [(4, 200), (1, 205)]])
    found = counted(log, PairConfig(recent=0))
    both = {(1, 2), (2, 3), (1, 3), (4, 1)}
    assert found == {pair: 1.0 for a, b in both for pair in ((a, b), (b, a))}


def test_the_trigger_is_the_recent_item_that_goes_best_with_the_target() -> None:
    rng = np.random.default_rng(0)
    users = [
        [(int(rng.integers(0, 9)), int(minute)) for minute in np.sort(rng.integers(0, 12, 8))]
        for _ in range(12)
    ]
    log, recent = make_log(users), 4
    met: Counter[tuple[int, int]] = Counter()
    popularity = Counter(item for user in users for item, _ in user)

    def past(user: list[tuple[int, int]], place: int) -> list[int]:
        item, minute = user[place]
        before = user[max(0, place - recent) : place]
        return [other for other, at in before if at < minute and other != item]

    for user in users:
        for place, (item, _) in enumerate(user):
            met.update((other, item) for other in past(user, place))
    expected: Counter[tuple[int, int]] = Counter()
    for user in users:
        for place, (item, _) in enumerate(user):
            if others := past(user, place):
                score = {
                    o: met[o, item] / (popularity[o] * popularity[item]) ** 0.5 for o in others
                }
                latest_first = others[::-1]
                expected[max(latest_first, key=lambda o: score[o]), item] += 1
    config = PairConfig(session_minutes=0, recent=recent, max_pairs_per_item=50, max_count=99)
    sessions = counted(log, PairConfig(session_minutes=0, recent=0, max_pairs_per_item=50,
                                       max_count=99))  # fmt: skip
    found = counted(log, config)
    triggers = {pair: weight - sessions.get(pair, 0) for pair, weight in found.items()}
    assert {pair: weight for pair, weight in triggers.items() if weight} == dict(expected)


def test_a_popular_item_keeps_its_most_frequent_partners() -> None:
    users = [[(0, 0), (partner, 1)] for partner in range(1, 7) for _ in range(partner)]
    config = PairConfig(recent=0, max_pairs_per_item=2, max_count=5)
    found = counted(make_log(users), config)
    assert found == {(0, 6): 5.0, (6, 0): 5.0, (0, 5): 5.0, (5, 0): 5.0}


def test_the_probability_of_a_target_is_its_share_of_the_weights() -> None:
    pairs = behaviour_pairs(make_log([[(0, 0), (1, 1), (2, 2)]]), PairConfig(recent=0))
    assert pairs.target_probability(4).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_a_log_without_pairs_gives_none() -> None:
    assert len(behaviour_pairs(make_log([[(1, 0)], [(2, 0)]]), PairConfig())) == 0
