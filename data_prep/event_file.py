"""The sorted events between two steps, as an Arrow file.

It is read a few times and then removed, so it is written fast rather than small: 17 bytes an event
as they lie in memory, a sixth of what Parquet costs.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.arrays import to_numpy
from data_prep.records import whole_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_events(tables: Iterable["pa.Table"], path: Path, *, schema: "pa.Schema") -> None:
    """Write user_row, time, item_row, label and perhaps weight, ordered by user, time and item."""
    import pyarrow as pa

    with whole_file(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for table in tables:
            writer.write_table(table)


def read_events(path: Path) -> Iterator["pa.RecordBatch"]:
    """All events in their order, a part of the file after the other."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:  # not mapped: pages would count as memory of this process
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def read_users_events(path: Path, *, first: int, last: int) -> "pa.Table":
    """The events of the users in rows `first` up to `last`, without `last`."""
    import pyarrow as pa

    with _mapped(path) as file:
        numbers = range(file.num_record_batches)
        # From the batch before the one that begins with `first`, as it may begin in the middle.
        start = bisect_left(numbers, first, key=lambda number: _first_user(file, number))
        stop = bisect_left(numbers, last, key=lambda number: _first_user(file, number))
        parts = []
        for number in numbers[max(start - 1, 0) : stop]:
            batch = file.get_batch(number)
            users = to_numpy(batch["user_row"])
            begin, end = bisect_left(users, first), bisect_left(users, last)
            parts.append(batch.slice(begin, end - begin))
        return pa.Table.from_batches(parts, schema=file.schema)


def events_schema(path: Path) -> "pa.Schema":
    """Which columns the events have."""
    with _mapped(path) as file:
        return file.schema


@contextmanager
def _mapped(path: Path) -> Iterator["pa.RecordBatchFileReader"]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        yield pa.ipc.open_file(file)


def _first_user(file: "pa.RecordBatchFileReader", number: int) -> int:
    return int(file.get_batch(number)["user_row"][0].as_py())
