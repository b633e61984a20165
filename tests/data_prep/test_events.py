import numpy as np
import pytest

from data_prep.events import EventLog


@pytest.fixture
def log() -> EventLog:
    rng = np.random.default_rng(0)
    lengths = np.array([0, 7, 1, 0, 20, 3, 0])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Few distinct times, so that many events share theirs with a query.
    times = np.concatenate([np.sort(rng.integers(0, 8, n)) for n in lengths])
    return EventLog(
        offsets=offsets,
        item_rows=rng.integers(0, 50, offsets[-1]).astype(np.uint32),
        times=times,
        labels=rng.integers(0, 2, offsets[-1]).astype(np.int8),
    )


def slow_history(log: EventLog, user: int, time: int, length: int) -> list[tuple[int, int]]:
    events = [
        (int(log.item_rows[i]), int(log.times[i]))
        for i in range(log.offsets[user], log.offsets[user + 1])
        if log.times[i] < time
    ]
    return events[-length:]


@pytest.mark.parametrize("length", [1, 4, 30])
def test_histories_equal_a_slow_twin_and_hold_nothing_at_or_after_the_time(
    log: EventLog, length: int
) -> None:
    users, times = (
        grid.ravel() for grid in np.meshgrid(np.arange(7), np.arange(-1, 10), indexing="ij")
    )
    rows, when = log.histories(users, times, length=length)
    assert rows.shape == when.shape == (77, length)
    for n, (user, time) in enumerate(zip(users, times, strict=True)):
        expected = slow_history(log, user, time, length)
        padding = [(-1, 0)] * (length - len(expected))
        assert list(zip(rows[n].tolist(), when[n].tolist(), strict=True)) == expected + padding


def test_history_ends_count_the_events_strictly_before(log: EventLog) -> None:
    ends = log.history_ends(np.array([4, 4, 0, 6]), np.array([-1, 99, 5, 5]))
    assert ends.tolist() == [log.offsets[4], log.offsets[5], 0, len(log)]


def test_positives_and_before_keep_users_and_order(log: EventLog) -> None:
    kept = log.positives().before(5)
    expected = (log.labels == 1) & (log.times < 5)
    assert kept.num_users == log.num_users
    assert kept.item_rows.tolist() == log.item_rows[expected].tolist()
    assert kept.user_rows().tolist() == log.user_rows()[expected].tolist()


def test_an_empty_log_has_empty_histories() -> None:
    nothing = EventLog(
        offsets=np.zeros(3, np.int64),
        item_rows=np.zeros(0, np.uint32),
        times=np.zeros(0, np.int64),
        labels=np.zeros(0, np.int8),
    )
    rows, times = nothing.histories(np.array([0, 1]), np.array([5, 5]), length=2)
    assert rows.tolist() == [[-1, -1], [-1, -1]]
    assert times.tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="length"):
        nothing.histories(np.array([0]), np.array([5]), length=0)
