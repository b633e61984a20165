"""The sorted log as it streams out of the engine: duplicates dropped, users numbered.

What needs only a row and its neighbours happens here, in one pass over the stream and in the same
way for every engine; the engine has cleaned, joined and sorted. Letters: n rows of a table.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.event_file import write_events
from data_prep.records import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

Duplicates = Literal["keep_exact_once", "keep_first", "keep_all"]
Columns = dict[str, NDArray[Any]]

ONLY_SHOWN = -1
"""Item row of a row that is no event: the user has an impression and is to be numbered."""


def sort_keys(names: list[str], *, item: str, duplicates: Duplicates) -> list[str]:
    """What the stream is to be ordered by; label and weight, where it has them, descending."""
    first = ["user_id", "time", item]
    if duplicates == "keep_first":
        first = ["user_id", item, "time"]
    return first + [name for name in ("label", "weight") if name in names]


@dataclass
class SortedLog:
    """What a sorted stream holds, counted while it is written."""

    duplicates: Duplicates
    usable: int = 0
    """Events before duplicates are dropped."""
    kept: int = 0
    users: int = 0
    _last: dict[str, Any] = field(default_factory=dict)

    def number(self, table: "pa.Table") -> tuple["pa.Table", Columns]:
        """The users that begin in a table of the stream, and its events.

        Of several rows that count as one event the first stays.
        """
        import pyarrow as pa

        user_id = table["user_id"].combine_chunks()
        columns = {name: to_numpy(table[name]) for name in table.column_names[1:]}
        item_n, time_n = columns["item_row"], columns["time"]
        new_user_n = _changes(user_id, last=self._last.get("user_id"))
        event_n = item_n != ONLY_SHOWN
        first = np.flatnonzero(new_user_n)
        users = pa.table(
            {
                "user_row": to_arrow(np.arange(len(first), dtype=np.int32) + self.users),
                "user_id": user_id.take(to_arrow(first)),
                # Such a row comes before the user's events: its item row is the least.
                "shown": to_arrow(~event_n[first]),
            }
        )
        columns = {"user_row": np.cumsum(new_user_n, dtype=np.int32) + (self.users - 1)} | columns
        self.usable += int(np.count_nonzero(event_n))
        if self.duplicates != "keep_all":
            new_n = new_user_n | _changes(item_n, last=self._last.get("item_row"))
            if self.duplicates == "keep_exact_once":
                new_n |= _changes(time_n, last=self._last.get("time"))
            event_n &= new_n
        if not event_n.all():
            columns = {name: values[event_n] for name, values in columns.items()}
        self._last = {"user_id": user_id[-1].as_py(), "item_row": item_n[-1], "time": time_n[-1]}
        self.users += users.num_rows
        self.kept += len(columns["item_row"])
        return users, columns


def write_sorted_log(
    tables: Iterable["pa.Table"],
    *,
    schema: "pa.Schema",
    duplicates: Duplicates,
    events_path: Path,
    users_path: Path,
    count: "Callable[[pa.Table], None] | None" = None,
) -> SortedLog:
    """Write the events, and the users: user_row, user_id, and shown (has an impression).

    Args:
        tables: The stream, ordered by `sort_keys`: user_id, time, item_row, and label and weight
            where the log has them.
        schema: The stream's, as far as it is user_id, and weight or none.
        duplicates: Which events count as one.
        events_path: user_row, time, item_row, label and weight, ordered by user, time and item.
        users_path: Ordered by row.
        count: Called with each table of events, to save reading them again.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    log = SortedLog(duplicates)
    id_field = schema.field("user_id")
    users_schema = pa.schema([("user_row", pa.int32()), id_field, ("shown", pa.bool_())])
    types = {"user_row": pa.int32(), "time": pa.int64(), "item_row": pa.int32(), "label": pa.int8()}
    types |= {"weight": pa.float32()} if "weight" in schema.names else {}
    with (
        whole_file(users_path) as temporary,
        pq.ParquetWriter(temporary, users_schema, compression="zstd") as writer,
    ):

        def events() -> Iterator[Columns]:
            for table in tables:
                users, columns = log.number(table)
                writer.write_table(users.cast(users_schema))
                yield columns

        ordered = _by_time(events()) if duplicates == "keep_first" else events()
        filled = (_as_table(columns, types) for columns in ordered)
        counted = filled if count is None else _each(count, filled)
        write_events(counted, events_path, schema=pa.schema(types))
    return log


def _each(call: "Callable[[pa.Table], None]", tables: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    for table in tables:
        call(table)
        yield table


def _as_table(columns: Columns, types: "dict[str, pa.DataType]") -> "pa.Table":
    import pyarrow as pa

    if "label" not in columns:  # every event is positive
        columns = columns | {"label": np.ones(len(columns["time"]), np.int8)}
    return pa.table({name: to_arrow(columns[name]).cast(kind) for name, kind in types.items()})


def _by_time(blocks: Iterable[Columns]) -> Iterator[Columns]:
    """Whole users, each user's events in order of time and item."""
    held: Columns | None = None
    for block in blocks:
        if held is not None:
            block = {name: np.concatenate([held[name], block[name]]) for name in block}
        if len(block["time"]) == 0:
            continue
        # The last user's events may go on in the next block.
        whole = int(np.searchsorted(block["user_row"], block["user_row"][-1]))
        held = {name: values[whole:] for name, values in block.items()}
        yield _sorted_by_time({name: values[:whole] for name, values in block.items()})
    if held is not None:
        yield _sorted_by_time(held)


def _sorted_by_time(columns: Columns) -> Columns:
    order = np.lexsort((columns["item_row"], columns["time"], columns["user_row"]))
    return {name: values[order] for name, values in columns.items()}


def _changes(values: "NDArray[Any] | pa.Array", *, last: object) -> NDArray[np.bool_]:
    """[n] Whether each value differs from the one before it; `last` came before the first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    changed_n = np.empty(len(values), bool)
    if isinstance(values, pa.Array):
        first = values[0].as_py()
        rest = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
        changed_n[1:] = to_numpy(rest)
    else:
        first = values[0]
        np.not_equal(values[1:], values[:-1], out=changed_n[1:])
    changed_n[0] = last is None or first != last
    return changed_n
