"""Random access to item content through the sidecar indexes of `items/*.tar`."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.records import ItemRecord, decode_item, item_index, item_tar

INDEX_SCHEMA = pa.schema(
    [
        pa.field("item_row", pa.int32()),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("crc32", pa.uint32()),
    ]
)
"""Payload offset and size in the tar; the checksum lets `verify` name a damaged item."""


@dataclass(frozen=True)
class _OpenShard:
    """One tar and its index, mapped into memory."""

    payload: mmap.mmap
    item_rows: NDArray[np.int32]
    members: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class ItemContent:
    """Reads one item's content in O(1); shards are mapped when first needed.

    It can be pickled and forked: a copy in another process maps the shards anew.
    """

    def __init__(self, dataset_dir: Path, *, num_items: int, items_per_shard: int) -> None:
        self.dataset_dir = Path(dataset_dir)
        self.num_items = num_items
        self.items_per_shard = items_per_shard
        self._shards: dict[int, _OpenShard] = {}

    def __len__(self) -> int:
        return self.num_items

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def read(self, item_row: int) -> ItemRecord:
        """The content of the item in this row."""
        return decode_item(self.members(item_row))

    def members(self, item_row: int) -> dict[str, bytes]:
        """The item's tar members as they were written, by name without the key."""
        item_row = int(item_row)
        if not 0 <= item_row < self.num_items:
            raise IndexError(f"item row {item_row}: expected one in 0..{self.num_items - 1}")
        shard = self._shard(item_row // self.items_per_shard)
        begin, end = np.searchsorted(shard.item_rows, [item_row, item_row + 1])
        return {
            shard.members[i].as_py(): shard.payload[
                int(shard.offsets[i]) : int(shard.offsets[i] + shard.sizes[i])
            ]
            for i in range(begin, end)
        }

    def _shard(self, number: int) -> _OpenShard:
        if number not in self._shards:
            with (self.dataset_dir / item_tar(number)).open("rb") as file:
                payload = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = read_index(self.dataset_dir / item_index(number))
            self._shards[number] = _OpenShard(
                payload=payload,
                item_rows=index["item_row"].chunk(0).to_numpy(),
                members=index["member"].chunk(0),
                offsets=index["offset"].chunk(0).to_numpy(),
                sizes=index["size"].chunk(0).to_numpy(),
            )
        return self._shards[number]


def read_index(path: Path) -> pa.Table:
    """Map a sidecar index into memory; its columns have one chunk each."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema != INDEX_SCHEMA:
        raise ValueError(
            f"{path}: found columns {table.schema.names}, expected {INDEX_SCHEMA.names}; "
            "re-run python -m data_prep shard"
        )
    return table
