"""What is counted of the sorted events: in which split they lie, and every item's popularity.

Letters: n events of a row group, I items.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.manifest import Cutoffs
from data_prep.parquet_files import read_in_order

if TYPE_CHECKING:
    import pyarrow as pa

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
        time_n, item_n = to_numpy(table["time"]), to_numpy(table["item_row"])
        positive_n = to_numpy(table["label"]) == 1
        train_n, test_n = time_n < cutoffs.valid_start, time_n >= cutoffs.test_start
        trained_n = train_n & positive_n
        num_train, num_test = int(train_n.sum()), int(test_n.sum())
        parts = [len(time_n), num_train, len(time_n) - num_train - num_test, num_test]
        parts += [int(positive_n.sum()), int(trained_n.sum())]
        for name, part in zip(totals, parts, strict=True):
            totals[name] += part
        counts.newest = max(counts.newest, int(time_n.max(initial=0)))
        counts.newest_train = max(
            counts.newest_train, int(np.max(time_n, initial=0, where=train_n))
        )
        counts.train_count_I += np.bincount(item_n[trained_n], minlength=num_items)
        earlier = np.flatnonzero(time_n < counts.first_event_I[item_n])  # soon few
        np.minimum.at(counts.first_event_I, item_n[earlier], time_n[earlier])
    return counts


def with_counts(table: "pa.Table", events: EventCounts) -> "pa.Table":
    """`train_count` and `first_time` in place of `arrival`, for items in order of row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    start = table["item_row"][0].as_py()
    here = slice(start, start + table.num_rows)
    first = events.first_event_I[here]
    given = {
        "train_count": to_arrow(events.train_count_I[here]),
        "first_time": pc.coalesce(table["arrival"], to_arrow(first, valid=first != NEVER)),
    }
    columns = {name: table[name] for name in table.column_names if name != "arrival"} | given
    schema = with_counts_schema(table.schema)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def with_counts_schema(schema: "pa.Schema") -> "pa.Schema":
    """The schema of `with_counts`, of its argument's."""
    import pyarrow as pa

    place = schema.get_field_index("arrival")
    schema = schema.remove(place).insert(place, pa.field("first_time", pa.int64()))
    return schema.insert(place, pa.field("train_count", pa.int64()))
