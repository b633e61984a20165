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


def rank_slice(batch: Int64, *, rank: int, num_ranks: int) -> slice:
    """This rank's part of a global batch: contiguous, sizes differ by at most one."""
    bounds = np.linspace(0, len(batch), num_ranks + 1).astype(int)
    return slice(int(bounds[rank]), int(bounds[rank + 1]))


@dataclass(frozen=True)
class Samples:
    """Windows of a batch as padded matrices; item rows, -1 where padded."""

    history_BL: Int64
    times_BL: Int64
    targets_BT: Int64
    states_BT: Int64


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
    budget: Int64 | int = num_targets
    if order == "set":
        share = rng.random((len(batch), 1))[part]
        drawn = 1 + (share * (sizes - 1)).astype(np.int64) if set_split == "any" else sizes // 2
        budget = np.minimum(num_targets, drawn)
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
