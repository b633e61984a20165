"""Random access to item content through the sidecar indexes of `items/*.tar`.

Shapes: n items asked for, I items of a tar, M members of a tar.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrow_files import map_arrow
from data_prep.available_memory import available_bytes
from data_prep.folders import Folder
from data_prep.mapped_file import MappedFile, Reads, max_mapped_files
from data_prep.records import (
    IMAGE_MEMBER,
    JSON_MEMBER,
    ItemRecord,
    decode_item,
    item_index,
    item_tar,
    token_file,
)

logger = logging.getLogger(__name__)

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

KEPT_INDEXES = 8
"""An index is needed again only where another member of its tar is asked for."""


def reads_of(tar_bytes: int) -> Reads:
    """Tars are read ahead whole where all of them fit in half of the memory that is free.

    Else what was read ahead would be gone again before it is wanted, and the first batch alone, of
    items from everywhere, would ask for all of it.
    """
    available = available_bytes()
    if 2 * tar_bytes <= available:
        return "whole"
    logger.info(
        "items: %.1f GB of tars, %.1f GB of memory available: read item by item",
        *(tar_bytes / 1e9, available / 1e9),
    )
    return "spans"


@dataclass(frozen=True)
class _OpenTar:
    """One tar, mapped into memory."""

    file: MappedFile
    spans: dict[str, NDArray[np.int64] | None] = field(default_factory=dict)
    """Member name to [begin, end) of it in every item of the tar, [I, 2], zeros where the item has
    none; None where no item has it."""


@dataclass(frozen=True)
class _OpenIndex:
    """One tar's index, mapped into memory."""

    item_rows: NDArray[np.int32]
    members: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class _OpenTokens:
    """One tar's token ids, mapped into memory."""

    offsets: NDArray[np.int32]
    values: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class _Files:
    """Opens what belongs to one tar, checked."""

    folder: Folder
    num_items: int
    items_per_shard: int
    reads: Reads

    def tar(self, number: int) -> _OpenTar:
        return _OpenTar(MappedFile(self.folder.path(item_tar(number)), reads=self.reads))

    def index(self, number: int) -> _OpenIndex:
        table = read_index(self.folder.path(item_index(number)))
        index = _OpenIndex(
            item_rows=table["item_row"].chunk(0).to_numpy(),
            members=table["member"].chunk(0),
            offsets=table["offset"].chunk(0).to_numpy(),
            sizes=table["size"].chunk(0).to_numpy(),
        )
        self._check_index(index, number)
        return index

    def spans(self, index: _OpenIndex, number: int, member: str) -> NDArray[np.int64] | None:
        """Where one member lies in every item of a tar."""
        import pyarrow.compute as pc

        places = np.flatnonzero(pc.equal(index.members, member).to_numpy(zero_copy_only=False))
        if not len(places):
            return None
        first, last = self._rows(number)
        spans = np.zeros((last - first + 1, 2), np.int64)
        local = index.item_rows[places] - first
        spans[local, 0] = index.offsets[places]
        spans[local, 1] = index.offsets[places] + index.sizes[places]
        return spans

    def tokens(self, number: int) -> _OpenTokens:
        path = self.folder.path(token_file(number))
        table = map_arrow(path, None, again="python -m data_prep shard")
        first, last = self._rows(number)
        if table.column_names != ["tokens"] or table.num_rows != last - first + 1:
            raise ValueError(
                f"{path}: found {table.num_rows} rows of {table.column_names}, expected "
                f"{last - first + 1} of tokens; run python -m data_prep verify"
            )
        lists = table["tokens"].chunk(0)
        return _OpenTokens(lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False))

    def _rows(self, number: int) -> tuple[int, int]:
        """The first and the last of a tar."""
        first = number * self.items_per_shard
        return first, min(first + self.items_per_shard, self.num_items) - 1

    def _check_index(self, index: _OpenIndex, number: int) -> None:
        """Refuse an index that points out of its tar, before anything is sized by it."""
        first, last = self._rows(number)
        rows, offsets, sizes = index.item_rows, index.offsets, index.sizes
        size = self.folder.path(item_tar(number)).stat().st_size
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


class ItemContent:
    """Reads one item's content in O(1); tars are mapped when first needed.

    It can be pickled and forked: a copy in another process maps the tars anew.
    """

    def __init__(
        self, folder: Folder, *, num_items: int, items_per_shard: int, reads: Reads = "spans"
    ) -> None:
        self.folder = folder
        self.num_items = num_items
        self.items_per_shard = items_per_shard
        self.reads = reads
        self._files = _Files(folder, num_items, items_per_shard, reads)
        # The least recently used are let go; what is still referred to stays mapped.
        self._tar = lru_cache(max_mapped_files())(self._files.tar)
        self._tokens = lru_cache(max_mapped_files())(self._files.tokens)
        self._index = lru_cache(KEPT_INDEXES)(self._files.index)

    def __len__(self) -> int:
        return self.num_items

    def __reduce__(self) -> tuple[Callable[[], "ItemContent"], tuple[()]]:
        options = {"num_items": self.num_items, "items_per_shard": self.items_per_shard}
        return partial(ItemContent, self.folder, **options, reads=self.reads), ()

    def read(self, item_row: int) -> ItemRecord:
        """The content of the item in this row."""
        return decode_item(self.members(item_row))

    def members(self, item_row: int) -> dict[str, bytes]:
        """The item's tar members as they were written, by name without the key."""
        number, _ = self._place(item_row)
        tar, index = self._tar(number), self._index(number)
        begin, end = np.searchsorted(index.item_rows, [item_row, item_row + 1])
        spans = {
            index.members[i].as_py(): tar.file.span(
                int(index.offsets[i]), int(index.offsets[i] + index.sizes[i])
            )
            for i in range(begin, end)
        }
        return {member: bytes(payload) for member, payload in spans.items()}

    def image(self, item_row: int) -> memoryview | None:
        """The item's JPEG, not copied; None where it has none."""
        return self.member(IMAGE_MEMBER, item_row)

    def json(self, item_row: int) -> memoryview | None:
        """The item's texts, as JSON, not copied."""
        return self.member(JSON_MEMBER, item_row)

    def member(self, member: str, item_row: int) -> memoryview | None:
        """One member of the item, not copied; None where it has none."""
        number, local = self._place(item_row)
        tar = self._tar(number)
        if member not in tar.spans:
            tar.spans[member] = self._files.spans(self._index(number), number, member)
        spans = tar.spans[member]
        if spans is None:
            return None
        begin, end = spans[local].tolist()
        return tar.file.span(begin, end) if end else None

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
            number, local = self._place(item_row)
            stored = self._tokens(number)
            found = stored.values[stored.offsets[local] : stored.offsets[local + 1]]
            ids[place, : len(found)] = found
            counts[place] = len(found)
        return ids, counts

    def _place(self, item_row: int) -> tuple[int, int]:
        """The item's tar, and its place among that tar's items."""
        if not 0 <= item_row < self.num_items:
            raise IndexError(f"item row {item_row}: expected one in 0..{self.num_items - 1}")
        return divmod(int(item_row), self.items_per_shard)


def read_index(path: Path) -> pa.Table:
    """Map a sidecar index into memory; its columns have one chunk each."""
    return map_arrow(path, INDEX_SCHEMA, again="python -m data_prep shard")
