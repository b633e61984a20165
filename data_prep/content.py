"""Random access to item content through the sidecar indexes of `items/*.tar`.

Shapes: n items asked for, I items of a tar, M members of a tar.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrow_files import map_arrow
from data_prep.folders import Folder
from data_prep.records import (
    IMAGE_MEMBER,
    JSON_MEMBER,
    ItemRecord,
    decode_item,
    item_index,
    item_tar,
    token_file,
)

INDEX_SCHEMA = pa.schema(
    [
        pa.field("item_row", pa.int32()),
        pa.field("member", pa.dictionary(pa.int16(), pa.string())),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("hash", pa.uint64()),
    ]
)
"""Payload offset and size in the tar; the hash (XXH3) lets `verify` name a damaged item."""


READ_AHEAD_BYTES = 1 << 20
"""The kernel takes no more than this of one piece of advice."""


@dataclass(frozen=True)
class _OpenShard:
    """One tar and its index, mapped into memory."""

    payload: memoryview
    first_row: int
    item_rows: NDArray[np.int32]
    members: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Member name to its [begin, end) of every item of the tar, (0, 0) where it is absent."""

    def span(self, member: str, item_row: int) -> tuple[int, int]:
        """Where one item's member lies; found for the whole tar when first asked for."""
        if member not in self.spans:
            self.spans[member] = self._find(member)
        return self.spans[member][item_row - self.first_row]

    def _find(self, member: str) -> list[tuple[int, int]]:
        import pyarrow.compute as pc

        places = np.flatnonzero(pc.equal(self.members, member).to_numpy(zero_copy_only=False))
        spans = np.zeros((int(self.item_rows[-1]) - self.first_row + 1, 2), np.int64)
        local = self.item_rows[places] - self.first_row
        spans[local, 0] = self.offsets[places]
        spans[local, 1] = self.offsets[places] + self.sizes[places]
        return [(begin, end) for begin, end in spans.tolist()]


@dataclass(frozen=True)
class _OpenTokens:
    """One tar's token ids, mapped into memory."""

    offsets: NDArray[np.int32]
    values: NDArray[np.unsignedinteger[Any]]


class ItemContent:
    """Reads one item's content in O(1); shards are mapped when first needed.

    It can be pickled and forked: a copy in another process maps the shards anew.
    """

    def __init__(self, folder: Folder, *, num_items: int, items_per_shard: int) -> None:
        self.folder = folder
        self.num_items = num_items
        self.items_per_shard = items_per_shard
        self._shards: dict[int, _OpenShard] = {}
        self._tokens: dict[int, _OpenTokens] = {}

    def __len__(self) -> int:
        return self.num_items

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_tokens": {}}

    def read(self, item_row: int) -> ItemRecord:
        """The content of the item in this row."""
        return decode_item(self.members(item_row))

    def members(self, item_row: int) -> dict[str, bytes]:
        """The item's tar members as they were written, by name without the key."""
        shard = self._shard_of(item_row)
        begin, end = np.searchsorted(shard.item_rows, [item_row, item_row + 1])
        return {
            shard.members[i].as_py(): bytes(
                shard.payload[int(shard.offsets[i]) : int(shard.offsets[i] + shard.sizes[i])]
            )
            for i in range(begin, end)
        }

    def image(self, item_row: int) -> memoryview | None:
        """The item's JPEG, not copied; None where it has none."""
        return self.member(IMAGE_MEMBER, item_row)

    def json(self, item_row: int) -> memoryview | None:
        """The item's texts, as JSON, not copied."""
        return self.member(JSON_MEMBER, item_row)

    def tokens(
        self, item_rows: Sequence[int], *, length: int, padding: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids of items' texts as they were made at shard time.

        Args:
            item_rows: [n]
            length: width of the result; longer texts were cut when the ids were made.
            padding: fills the places after the last id.

        Returns:
            Ids [n, length], and how many each text has [n]: 0 where there is no text.
        """
        ids = np.full((len(item_rows), length), padding, np.int64)
        counts = np.zeros(len(item_rows), np.int64)
        for place, item_row in enumerate(item_rows):
            shard, local = divmod(item_row, self.items_per_shard)
            stored = self._tokens.get(shard) or self._open_tokens(shard)
            found = stored.values[stored.offsets[local] : stored.offsets[local + 1]]
            ids[place, : len(found)] = found
            counts[place] = len(found)
        return ids, counts

    def member(self, member: str, item_row: int) -> memoryview | None:
        """One member of the item, not copied; None where it has none."""
        shard = self._shard_of(item_row)
        begin, end = shard.span(member, item_row)
        return shard.payload[begin:end] if end else None

    def _shard_of(self, item_row: int) -> _OpenShard:
        if not 0 <= item_row < self.num_items:
            raise IndexError(f"item row {item_row}: expected one in 0..{self.num_items - 1}")
        number = int(item_row) // self.items_per_shard
        return self._shards.get(number) or self._open_shard(number)

    def _open_shard(self, number: int) -> _OpenShard:
        with self.folder.path(item_tar(number)).open("rb") as file:
            payload = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # A tar is wanted whole in the end: long reads now spare a slow disk a seek for each item.
        for start in range(0, len(payload), READ_AHEAD_BYTES):
            payload.madvise(mmap.MADV_WILLNEED, start, min(READ_AHEAD_BYTES, len(payload) - start))
        index = read_index(self.folder.path(item_index(number)))
        self._check_index(index, number, size=len(payload))
        self._shards[number] = _OpenShard(
            payload=memoryview(payload),
            first_row=number * self.items_per_shard,
            item_rows=index["item_row"].chunk(0).to_numpy(),
            members=index["member"].chunk(0),
            offsets=index["offset"].chunk(0).to_numpy(),
            sizes=index["size"].chunk(0).to_numpy(),
        )
        return self._shards[number]

    def _check_index(self, index: pa.Table, number: int, *, size: int) -> None:
        """Refuse an index that points out of its tar, before anything is sized by it."""
        first = number * self.items_per_shard
        rows, offsets, sizes = (index[name].to_numpy() for name in ("item_row", "offset", "size"))
        last = min(first + self.items_per_shard, self.num_items) - 1
        if not (
            len(rows)
            and (rows[0], rows[-1]) == (first, last)
            and (np.diff(rows) >= 0).all()
            and (np.minimum(offsets, sizes) >= 0).all()
            and (offsets <= size - sizes).all()
        ):
            raise ValueError(
                f"{self.folder.path(item_index(number))}: found rows or places that do not fit "
                f"{item_tar(number)} (rows {first} to {last}, {size:,} bytes); run python -m "
                "data_prep verify"
            )

    def _open_tokens(self, number: int) -> _OpenTokens:
        path = self.folder.path(token_file(number))
        table = map_arrow(path, None, again="python -m data_prep shard")
        first = number * self.items_per_shard
        expected = min(self.items_per_shard, self.num_items - first)
        if table.column_names != ["tokens"] or table.num_rows != expected:
            raise ValueError(
                f"{path}: found {table.num_rows} rows of {table.column_names}, expected "
                f"{expected} of tokens; run python -m data_prep verify"
            )
        lists = table["tokens"].chunk(0)
        self._tokens[number] = _OpenTokens(
            lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        )
        return self._tokens[number]


def read_index(path: Path) -> pa.Table:
    """Map a sidecar index into memory; its columns have one chunk each."""
    return map_arrow(path, INDEX_SCHEMA, again="python -m data_prep shard")
