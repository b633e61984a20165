"""What is counted of the sorted events: in which split they lie, and every item's popularity.

Letters: n events of a row group, I items.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.event_file import read_events
from data_prep.manifest import Cutoffs

if TYPE_CHECKING:
    import pyarrow as pa

NEVER = np.iinfo(np.int64).max


@dataclass
class EventCounts:
    """Counts over all events; 16 bytes an item are held."""

    cutoffs: Cutoffs
    num_items: int
    totals: dict[str, int] = field(init=False)
    """events, train_events, valid_events, test_events, positives, train_positives."""
    newest: int = 0
    """Unix milliseconds; 0 without events."""
    newest_train: int = 0
    """Of the events before `valid_start`."""
    train_count_I: NDArray[np.int64] = field(init=False)
    """Positive events before `valid_start`."""
    first_event_I: NDArray[np.int64] = field(init=False)
    """Unix milliseconds, or NEVER."""

    def __post_init__(self) -> None:
        names = ("events", "train_events", "valid_events", "test_events")
        self.totals = dict.fromkeys((*names, "positives", "train_positives"), 0)
        self.train_count_I = np.zeros(self.num_items, np.int64)
        self.first_event_I = np.full(self.num_items, NEVER, np.int64)

    def add(self, table: "pa.Table | pa.RecordBatch") -> None:
        """Count a table of events: time, item_row and label."""
        time_n, item_n = to_numpy(table["time"]), to_numpy(table["item_row"])
        positive_n = to_numpy(table["label"]) == 1
        train_n = time_n < self.cutoffs.valid_start
        trained_n = train_n & positive_n
        num_train = int(np.count_nonzero(train_n))
        num_test = int(np.count_nonzero(time_n >= self.cutoffs.test_start))
        parts = [len(time_n), num_train, len(time_n) - num_train - num_test, num_test]
        parts += [int(np.count_nonzero(part_n)) for part_n in (positive_n, trained_n)]
        for name, part in zip(self.totals, parts, strict=True):
            self.totals[name] += part
        self.newest = max(self.newest, int(time_n.max(initial=0)))
        self.newest_train = max(self.newest_train, int(time_n[train_n].max(initial=0)))
        self.train_count_I += np.bincount(item_n[trained_n], minlength=self.num_items)
        np.minimum.at(self.first_event_I, item_n, time_n)


def count_events(events: Path, counts: EventCounts) -> None:
    """Count a file of sorted events."""
    for batch in read_events(events):
        counts.add(batch)


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
