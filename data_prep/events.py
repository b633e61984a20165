"""The event log in memory: every user's events in time order, and histories as slices of it.

Shapes: U users, E events, n queries.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class EventLog:
    """Events in compressed rows: those of user u are `offsets[u]:offsets[u + 1]`, oldest first."""

    offsets: Int64
    """[U + 1]"""
    item_rows: NDArray[np.uint32]
    """[E]"""
    times: Int64
    """[E] unix milliseconds."""
    labels: NDArray[np.int8]
    """[E] 1 is positive."""
    weights: NDArray[np.float32] | None = None
    """[E] or absent."""

    @property
    def num_users(self) -> int:
        """Users, those without events included."""
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return len(self.item_rows)

    def user_rows(self) -> Int64:
        """[E] the user of every event."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    def select(self, keep: NDArray[np.bool_]) -> "EventLog":
        """Only the events marked in `keep` [E]; the users stay."""
        kept_before = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        return EventLog(
            offsets=kept_before[self.offsets],
            item_rows=self.item_rows[keep],
            times=self.times[keep],
            labels=self.labels[keep],
            weights=None if self.weights is None else self.weights[keep],
        )

    def positives(self) -> "EventLog":
        """Only the events whose label is 1."""
        return self.select(self.labels == 1)

    def before(self, time_ms: int) -> "EventLog":
        """Only the events strictly before a time."""
        return self.select(self.times < time_ms)

    def history_ends(self, user_rows: NDArray[np.integer], times: NDArray[np.integer]) -> Int64:
        """Where each query's history ends: events `offsets[u]:end` are strictly before its time.

        A binary search inside each user's slice, for all n queries at once.
        """
        low: Int64 = self.offsets[user_rows]
        high = self.offsets[np.asarray(user_rows) + 1]
        while np.any(open_ := low < high):
            middle = (low + high) // 2
            # A closed query's middle may be E; it is clipped for the read and masked after it.
            earlier = open_ & (self.times[np.minimum(middle, len(self) - 1)] < times)
            low = np.where(earlier, middle + 1, low)
            high = np.where(open_ & ~earlier, middle, high)
        return low

    def histories(
        self, user_rows: NDArray[np.integer], times: NDArray[np.integer], *, length: int
    ) -> tuple[Int64, Int64]:
        """The latest `length` events strictly before each query's time, oldest first.

        Returns:
            Item rows [n, length], padded with -1 at the end, and times [n, length], with 0.
        """
        if length < 1:
            raise ValueError(f"length: found {length}, expected at least 1")
        ends = self.history_ends(user_rows, times)
        starts = np.maximum(self.offsets[user_rows], ends - length)
        positions = starts[:, None] + np.arange(length)
        inside = positions < ends[:, None]
        if len(self) == 0:
            return np.full(positions.shape, -1, np.int64), np.zeros(positions.shape, np.int64)
        positions = np.minimum(positions, len(self) - 1)
        return (
            np.where(inside, self.item_rows[positions].astype(np.int64), -1),
            np.where(inside, self.times[positions], 0),
        )
