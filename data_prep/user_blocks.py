"""A block of users as it lies in `users/*.tar`: one Arrow table, a user a row, events as lists.

Buffers are compressed by zstd, so that an event takes 6 to 8 bytes of its 13.

Shapes: U users of the block, E events of the block.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrays import to_arrow, to_numpy
from data_prep.arrow_files import parse_arrow

BLOCK_MEMBER = "events.arrow"
EVENT_TYPES = {"item_rows": "uint32", "times": "int64", "labels": "int8", "weights": "float32"}
"""What an event has; times are unix milliseconds, and `weights` may be left out."""


@dataclass(frozen=True)
class UserBlock:
    """Events of consecutive users, oldest first within a user."""

    users: NDArray[np.uint32]
    """[U] user rows."""
    offsets: NDArray[np.int64]
    """[U + 1] events of user u are `offsets[u]:offsets[u + 1]`."""
    events: dict[str, NDArray[Any]]
    """Columns of `EVENT_TYPES`, [E] each."""

    def encode(self) -> bytes:
        """The block as an Arrow file."""
        if self.offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(
                f"block of users: found {self.offsets[-1]:,} events of {len(self.users)} users, "
                "expected fewer than 2^31; filter users who are robots"
            )
        offsets = to_arrow(self.offsets.astype(np.int32))
        columns = {"user_row": to_arrow(self.users.astype(np.uint32))} | {
            name: pa.ListArray.from_arrays(offsets, to_arrow(values.astype(EVENT_TYPES[name])))
            for name, values in self.events.items()
        }
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())


def decode_block(payload: bytes) -> UserBlock:
    """Read what `UserBlock.encode` wrote.

    Raises:
        ValueError: no such table, other columns, or lists of other lengths.
    """
    table = parse_arrow(pa.BufferReader(payload), where="block of users").combine_chunks()
    found = {field.name: field.type for field in table.schema}
    names = [name for name in EVENT_TYPES if name in found or name != "weights"]
    expected = {"user_row": pa.uint32()} | {
        name: pa.list_(pa.from_numpy_dtype(EVENT_TYPES[name])) for name in names
    }
    if found != expected or table.num_rows == 0:
        raise ValueError(
            f"block of users: found {table.num_rows} rows of {found}, expected {expected}"
        )
    lists = {name: table[name].chunk(0) for name in names}
    offsets = {name: to_numpy(column.offsets) for name, column in lists.items()}
    of_items = offsets["item_rows"]
    if any(column.null_count or column.flatten().null_count for column in lists.values()) or any(
        not np.array_equal(of_items, other) for other in offsets.values()
    ):
        raise ValueError("block of users: found missing values, or columns of other lengths")
    return UserBlock(
        users=to_numpy(table["user_row"]),
        offsets=of_items.astype(np.int64) - of_items[0],
        events={name: to_numpy(column.flatten()) for name, column in lists.items()},
    )
