"""Windows, orders and draws are pure, complete and see no future."""

import dataclasses

import numpy as np
import pytest

from data_prep.behaviour_pairs import ItemPairs
from data_prep.events import EventLog
from pretrain.samples import (
    Samples,
    cut_windows,
    draw_pairs,
    draw_samples,
    global_batch,
    num_steps,
    rank_slice,
    target_probability,
)

LENGTH = 6


@pytest.fixture
def log() -> EventLog:
    sizes = np.array([1, 0, 5, 20, 7, 2])
    times = np.concatenate([np.arange(size) // 2 for size in sizes]).astype(np.int64)  # ties
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        item_rows=np.arange(sizes.sum(), dtype=np.uint32),
        times=times,
        labels=np.ones(sizes.sum(), np.int8),
    )


def draw(
    log: EventLog, *, order: str, part: slice = slice(None), num_targets: int = LENGTH
) -> Samples:
    windows = cut_windows(log, length=LENGTH, order=order)
    return draw_samples(
        log, windows, batch=np.arange(len(windows)), part=part, length=LENGTH,
        num_targets=num_targets, order=order, seed=0, epoch=0, step=0,
    )  # fmt: skip


def test_every_event_is_a_target_exactly_once(log: EventLog) -> None:
    targets = draw(log, order="time").targets_BT
    assert sorted(targets[targets >= 0]) == list(range(len(log)))


def test_a_state_has_seen_only_what_came_strictly_before_its_target(log: EventLog) -> None:
    samples = draw(log, order="time")
    for history, targets, states in zip(
        samples.history_BL, samples.targets_BT, samples.states_BT, strict=True
    ):
        for target, state in zip(targets, states, strict=True):
            if target < 0:
                continue
            seen = [row for row in history[:state] if row >= 0]
            assert all(log.times[row] < log.times[target] for row in seen)
            window = [row for row in history if row >= 0]
            assert len(seen) == sum(log.times[row] < log.times[target] for row in window)


def test_in_a_set_targets_and_history_part_a_users_items(log: EventLog) -> None:
    samples = draw(log, order="set", num_targets=3)
    for history, targets in zip(samples.history_BL, samples.targets_BT, strict=True):
        history, targets = set(history[history >= 0]), set(targets[targets >= 0])
        assert history
        assert targets
        assert not history & targets
        assert len(targets) <= 3


def test_two_ranks_draw_what_one_draws(log: EventLog) -> None:
    whole = draw(log, order="time", num_targets=2)
    count = len(whole.history_BL)
    batch = np.arange(count)
    parts = [
        draw(log, order="time", num_targets=2, part=rank_slice(batch, rank=rank, num_ranks=2))
        for rank in range(2)
    ]
    for name in ("history_BL", "times_BL", "targets_BT", "states_BT"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_share_a_batch_without_gap_or_overlap(num_ranks: int) -> None:
    batch = np.arange(10)
    slices = [rank_slice(batch, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    assert np.concatenate([batch[part] for part in slices]).tolist() == batch.tolist()


def test_an_epoch_shows_each_sample_once_and_the_next_in_another_order() -> None:
    epochs = [
        np.concatenate(
            [
                global_batch(20, seed=3, epoch=epoch, step=step, global_batch_size=5)
                for step in range(num_steps(20, global_batch_size=5))
            ]
        )
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_world_smaller_than_a_batch_gives_one_step() -> None:
    assert num_steps(3, global_batch_size=8) == 1
    assert len(global_batch(3, seed=0, epoch=0, step=0, global_batch_size=8)) == 3


@pytest.mark.parametrize(("order", "split"), [("time", "half"), ("set", "half"), ("set", "any")])
def test_target_probability_is_the_share_of_what_is_drawn(
    log: EventLog, order: str, split: str
) -> None:
    windows = cut_windows(log, length=LENGTH, order=order)
    rows = np.arange(len(log)) % 9
    log = dataclasses.replace(log, item_rows=rows.astype(np.uint32))
    expected = target_probability(
        log, windows, num_items=10, num_targets=2, order=order, set_split=split
    )
    drawn = np.zeros(10)
    for epoch in range(600):
        targets = draw_samples(
            log, windows, batch=np.arange(len(windows)), part=slice(None), length=LENGTH,
            num_targets=2, order=order, seed=0, epoch=epoch, step=0, set_split=split,
        ).targets_BT  # fmt: skip
        drawn += np.bincount(targets[targets >= 0], minlength=10)
    assert expected[9] == 0
    np.testing.assert_allclose(drawn / drawn.sum(), expected, atol=0.012)
    shares = np.bincount(rows, minlength=10) / len(log)
    assert np.abs(expected - shares).max() > 0.015  # it is not the share of events


def test_pairs_are_drawn_by_weight_and_step() -> None:
    pairs = ItemPairs(np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([1.0, 0.0, 3.0]))
    drawn = draw_pairs(pairs, count=8000, seed=0, epoch=1, step=2)
    assert set(map(tuple, drawn.tolist())) == {(1, 4), (3, 6)}
    assert (drawn[:, 0] == 3).mean() == pytest.approx(0.75, abs=0.02)
    assert not np.array_equal(drawn, draw_pairs(pairs, count=8000, seed=0, epoch=1, step=3))


def test_any_split_of_a_set_predicts_every_number_of_items_equally_often() -> None:
    sets = 3000
    log = EventLog(
        offsets=np.arange(sets + 1) * 4, item_rows=np.arange(sets * 4, dtype=np.uint32),
        times=np.zeros(sets * 4, np.int64), labels=np.ones(sets * 4, np.int8),
    )  # fmt: skip
    windows = cut_windows(log, length=LENGTH, order="set")
    samples = draw_samples(
        log, windows, batch=np.arange(sets), part=slice(None), length=LENGTH, num_targets=LENGTH,
        order="set", seed=0, epoch=0, step=0, set_split="any",
    )  # fmt: skip
    counts = np.bincount((samples.targets_BT >= 0).sum(1), minlength=5)
    assert counts[0] == counts[4] == 0
    assert np.abs(counts[1:4] / sets - 1 / 3).max() < 0.04
    both = (samples.targets_BT >= 0).sum(1) + (samples.history_BL >= 0).sum(1)
    assert (both == 4).all()
