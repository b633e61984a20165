"""The workload's pictures and texts mapped into memory: the same bytes for every writer."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from workload import Workload


@dataclass(frozen=True)
class MappedColumn:
    """Values end to end in a file."""

    payload: memoryview
    offsets: list[int]

    def __getitem__(self, row: int) -> memoryview:
        return self.payload[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


class MappedItems:
    """The items, `repeats` times over under new numbers: (row, picture, text)."""

    def __init__(self, workload: Workload, *, repeats: int = 1) -> None:
        self.workload = workload
        self.images = map_column(workload, "images")
        self.texts = map_column(workload, "texts")
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.images) * self.repeats

    def __iter__(self) -> Iterator[tuple[int, memoryview, memoryview]]:
        for row in range(len(self)):
            item = row % len(self.images)
            yield row, self.images[item], self.texts[item]


def map_column(workload: Workload, name: str) -> MappedColumn:
    """Map a column with every page present, so that no case pays for the first touch."""
    with workload.column(name).open("rb") as file:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
    return MappedColumn(memoryview(mapped), np.load(workload.offsets(name)).tolist())
