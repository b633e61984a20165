"""What is counted of the sorted events: in which split they lie, and every item's popularity.

Letters: n events of a row group, I items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import Cutoffs
from data_prep.parquet_files import read_in_order

NEVER = np.iinfo(np.int64).max


@dataclass
class EventCounts:
    """Counts over all events."""

    totals: dict[str, int]
    """events, train_events, valid_events, test_events, positives, train_positives."""
    newest: int
    """Unix milliseconds; 0 without events."""
    newest_train: int
    """Of the events before `valid_start`."""
    train_count_I: NDArray[np.int64]
    """Positive events before `valid_start`."""
    first_event_I: NDArray[np.int64]
    """Unix milliseconds, or NEVER."""


def count_events(events: Path, *, cutoffs: Cutoffs, num_items: int) -> EventCounts:
    """Count in one pass over the file of sorted events; 16 bytes an item are held."""
    names = ("events", "train_events", "valid_events", "test_events")
    totals = dict.fromkeys((*names, "positives", "train_positives"), 0)
    counts = EventCounts(
        totals, 0, 0, np.zeros(num_items, np.int64), np.full(num_items, NEVER, np.int64)
    )
    for table in read_in_order(events, ["time", "item_row", "label"]):
        time_n, item_n = table["time"].to_numpy(), table["item_row"].to_numpy()
        positive_n = table["label"].to_numpy() == 1
        train_n, test_n = time_n < cutoffs.valid_start, time_n >= cutoffs.test_start
        trained_n = train_n & positive_n
        num_train, num_test = int(train_n.sum()), int(test_n.sum())
        parts = [len(time_n), num_train, len(time_n) - num_train - num_test, num_test]
        parts += [int(positive_n.sum()), int(trained_n.sum())]
        for name, part in zip(totals, parts, strict=True):
            totals[name] += part
        counts.newest = max(counts.newest, int(time_n.max()))
        counts.newest_train = max(
            counts.newest_train, int(np.max(time_n, initial=0, where=train_n))
        )
        counts.train_count_I += np.bincount(item_n[trained_n], minlength=num_items)
        np.minimum.at(counts.first_event_I, item_n, time_n)
    return counts
