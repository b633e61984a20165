"""Which events make up which step: pure functions of (log, seed, epoch, step).

The position in the data is the step number. A rank takes its slice of each global batch, so the
same run on another number of ranks sees the same global batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.behaviour_pairs import ItemPairs
from data_prep.events import EventLog

Int64 = NDArray[np.int64]
SetSplit = Literal["half", "any"]


@dataclass(frozen=True)
class Windows:
    """Windows of users' events; every event is a target in exactly one of them."""

    starts: Int64
    """[W] first event."""

    ends: Int64
    """[W] one past the last event."""

    first_targets: Int64
    """[W] first event that is a target here; those before it only give context."""

    def __len__(self) -> int:
        return len(self.starts)


def cut_windows(log: EventLog, *, length: int, order: Literal["time", "set"]) -> Windows:
    """Cut each user's events into windows of at most `length`.

    In time order a user with more events gets windows that overlap by half, the older half being
    context. Sets are cut apart without overlap. Users with one event predict nothing in a set;
    in time order that event is predicted from an empty history.
    """
    sizes = np.diff(log.offsets)
    step = length if order == "set" else max(1, length // 2)
    extra = np.maximum(0, -(-(sizes - length) // step))
    num_windows = np.where(sizes > 0, 1 + extra, 0)
    user = np.repeat(np.arange(len(sizes)), num_windows)
    number = np.arange(num_windows.sum()) - np.repeat(
        np.cumsum(num_windows) - num_windows, num_windows
    )
    starts = log.offsets[user] + number * step
    ends = np.minimum(starts + length, log.offsets[user + 1])
    context = 0 if order == "set" else length - step
    first_targets = np.where(number == 0, starts, starts + context)
    keep = ends - starts > 1 if order == "set" else first_targets < ends
    return Windows(starts[keep], ends[keep], first_targets[keep])


@lru_cache(maxsize=1)
def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Int64:
    """The order of an epoch; kept, since every step of the epoch asks for it."""
    order = np.random.default_rng([seed, epoch, 0]).permutation(num_samples)
    order.flags.writeable = False
    return order


def global_batch(
    num_samples: int, *, seed: int, epoch: int, step: int, global_batch_size: int
) -> Int64:
    """The samples of one global batch; the remainder of an epoch that fills no batch is left out.

    A data set smaller than one batch gives one batch of all its samples.
    """
    order = epoch_order(num_samples, seed=seed, epoch=epoch)
    return order[step * global_batch_size : (step + 1) * global_batch_size]


def num_steps(num_samples: int, *, global_batch_size: int) -> int:
    """Global batches of an epoch."""
    return max(1, num_samples // global_batch_size)


def draw_pairs(pairs: ItemPairs, *, count: int, seed: int, epoch: int, step: int) -> Int64:
    """[count, 2] item rows (trigger, target) of one global batch, drawn by weight."""
    noise = np.random.default_rng([seed, epoch, 3, step]).random(count)
    chosen = np.searchsorted(np.cumsum(pairs.weights), noise * pairs.weights.sum(), side="right")
    chosen = np.minimum(chosen, len(pairs) - 1)
    return np.stack([pairs.triggers[chosen], pairs.targets[chosen]], axis=1)


def rank_slice(batch: Int64, *, rank: int, num_ranks: int) -> slice:
    """This rank's part of a global batch: contiguous, sizes differ by at most one."""
    bounds = np.linspace(0, len(batch), num_ranks + 1).astype(int)
    return slice(int(bounds[rank]), int(bounds[rank + 1]))


def _budget(
    sizes: Int64,
    *,
    num_targets: int,
    order: Literal["time", "set"],
    set_split: SetSplit,
    share: NDArray[np.float64],
) -> Int64:
    """How many events of each window are predicted; `share` in [0, 1) is drawn for each."""
    if order == "time":
        return np.full_like(sizes, num_targets)
    drawn = 1 + (share * (sizes - 1)).astype(np.int64) if set_split == "any" else sizes // 2
    budget: Int64 = np.minimum(num_targets, drawn)
    return budget


def _mean_budget(
    sizes: Int64, *, num_targets: int, order: Literal["time", "set"], set_split: SetSplit
) -> NDArray[np.float64]:
    """What `_budget` is on average."""
    if order == "time" or set_split == "half":
        nothing = np.zeros(sizes.shape)
        budget = _budget(
            sizes, num_targets=num_targets, order=order, set_split=set_split, share=nothing
        )
        return budget.astype(np.float64)
    most = np.maximum(sizes - 1, 1)  # each number from 1 to this with equal chance
    capped = np.minimum(most, num_targets)
    mean: NDArray[np.float64] = (capped * (capped + 1) / 2 + num_targets * (most - capped)) / most
    return mean


def target_probability(
    log: EventLog,
    windows: Windows,
    *,
    num_items: int,
    num_targets: int,
    order: Literal["time", "set"],
    set_split: SetSplit = "half",
) -> NDArray[np.float64]:
    """[N] how likely each item is to be a target that `draw_samples` draws.

    Computed, not counted while training: every window comes once an epoch and draws its targets
    without preference, so that an event is one with probability min(1, budget / candidates) of its
    window. It is exact from step 0, the same on every rank and after a resume, and differs from
    the items' shares of events wherever windows hold more events than are drawn.
    """
    candidates = windows.ends - windows.first_targets
    sizes = windows.ends - windows.starts
    budget = _mean_budget(sizes, num_targets=num_targets, order=order, set_split=set_split)
    share = np.minimum(1.0, budget / np.maximum(candidates, 1))
    # Windows never share an event that may be a target: +share where they start, -share after.
    change = np.zeros(len(log) + 1)
    np.add.at(change, windows.first_targets, share)
    np.subtract.at(change, windows.ends, share)
    weight = np.cumsum(change)[:-1]
    drawn = np.bincount(log.item_rows, weights=weight, minlength=num_items).astype(np.float64)
    # A sum of differences: what should be zero is a rounding error.
    drawn[drawn < 1e-6] = 0.0
    probability: NDArray[np.float64] = drawn / max(float(drawn.sum()), 1e-12)
    return probability


@dataclass(frozen=True)
class Samples:
    """Windows of a batch as padded matrices; item rows, -1 where padded."""

    history_BL: Int64
    times_BL: Int64
    targets_BT: Int64
    states_BT: Int64

    def without_padding(self) -> Samples:
        """Histories and targets cut to the longest of them: events come first, padding last."""
        events = max(1, int((self.history_BL >= 0).sum(1).max(initial=0)))
        targets = max(1, int((self.targets_BT >= 0).sum(1).max(initial=0)))
        return Samples(
            self.history_BL[:, :events],
            self.times_BL[:, :events],
            self.targets_BT[:, :targets],
            self.states_BT[:, :targets],
        )


def draw_samples(
    log: EventLog,
    windows: Windows,
    *,
    batch: Int64,
    part: slice,
    length: int,
    num_targets: int,
    order: Literal["time", "set"],
    seed: int,
    epoch: int,
    step: int,
    set_split: SetSplit = "half",
) -> Samples:
    """Draw the targets of a rank's windows and lay both out as matrices.

    Random numbers are drawn for the whole global batch and then sliced, so that they do not
    depend on the number of ranks.

    In time order target p is predicted from the state that has seen the events *strictly before*
    p's time. In a set the targets are drawn first (half of it, or with `any` every number from one
    to all but one with equal chance) and the others, in any order, are the history.
    """
    rng = np.random.default_rng([seed, epoch, 1, step])
    noise = rng.random((len(batch), length))[part]
    mine = batch[part]
    starts, ends, firsts = windows.starts[mine], windows.ends[mine], windows.first_targets[mine]
    positions = starts[:, None] + np.arange(length)
    inside = positions < ends[:, None]
    positions = np.minimum(positions, len(log) - 1)
    rows = np.where(inside, log.item_rows[positions].astype(np.int64), -1)
    times = np.where(inside, log.times[positions], 0)
    allowed = inside & (positions >= firsts[:, None])
    sizes = (ends - starts)[:, None]
    share_B1 = rng.random((len(batch), 1))[part]
    budget = _budget(
        sizes, num_targets=num_targets, order=order, set_split=set_split, share=share_B1
    )
    rank_of = np.argsort(np.argsort(np.where(allowed, noise, 2.0), axis=1), axis=1)
    chosen = allowed & (rank_of < budget)
    # The chosen ones first, each row in window order; then cut to num_targets columns.
    pick = np.argsort(~chosen, axis=1, kind="stable")[:, :num_targets]
    taken = np.take_along_axis(chosen, pick, 1)
    targets = np.where(taken, np.take_along_axis(rows, pick, 1), -1)
    if order == "set":
        history = np.where(inside & ~chosen, rows, -1)
        keep = np.argsort(history < 0, axis=1, kind="stable")
        history = np.take_along_axis(history, keep, 1)
        states = np.where(taken, (history >= 0).sum(1)[:, None], 0)
        return Samples(history, np.zeros_like(history), targets, states)
    target_times = np.take_along_axis(times, pick, 1)
    before = inside[:, None, :] & (times[:, None, :] < target_times[:, :, None])
    return Samples(rows, times, targets, np.where(taken, before.sum(2), 0))
