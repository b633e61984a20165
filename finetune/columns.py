"""Columns of an encoded split: in memory, or in files that are mapped where there are too many.

A split is encoded once, a piece after the other, so that what is held at a time does not grow with
the split. Files lie in a folder that is written under a temporary name and then renamed.

Shapes: N impressions.
"""

import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Piece = Mapping[str, NDArray[Any]]
"""Some impressions' values by column; every piece has the same columns, types and widths."""


def columns_in_memory(pieces: Iterable[Piece], *, num_rows: int) -> dict[str, Tensor]:
    """Pieces side by side, each written to its place as it comes."""
    whole: dict[str, NDArray[Any]] = {}
    start = 0
    for piece in pieces:
        for name, values in piece.items():
            if name not in whole:
                whole[name] = np.empty((num_rows, *values.shape[1:]), values.dtype)
            whole[name][start : start + len(values)] = values
        start += len(next(iter(piece.values())))
    assert start == num_rows, f"{start} of {num_rows} impressions came"
    return {name: torch.from_numpy(values) for name, values in whole.items()}


def write_columns(pieces: Iterable[Piece], folder: Path, *, num_rows: int) -> None:
    """Write a .npy file a column; the folder is there with all of them or not at all."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files: dict[str, BinaryIO] = {}
    start = 0
    try:
        for piece in pieces:
            for name, values in piece.items():
                if name not in files:
                    files[name] = (temporary / f"{name}.npy").open("wb")
                    shape = (num_rows, *values.shape[1:])
                    header = np.lib.format.header_data_from_array_1_0(values[:0])
                    np.lib.format.write_array_header_1_0(files[name], header | {"shape": shape})
                np.ascontiguousarray(values).tofile(files[name])
            start += len(next(iter(piece.values())))
        assert start == num_rows, f"{start} of {num_rows} impressions came"
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        for file in files.values():
            file.close()
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
        if not folder.is_dir():
            raise


class _MappedArray:
    """A .npy file as a tensor whose pages come and go."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
            # A private mapping: torch takes only memory that may be written to.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        count = int(np.prod(shape))
        flat = np.frombuffer(self._map, dtype, count, offset) if count else np.empty(0, dtype)
        self.tensor = torch.from_numpy(flat.reshape(shape))
        self._offset = offset
        self._row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        self._map.madvise(mmap.MADV_RANDOM)  # or the kernel reads on past what is wanted

    def will_need(self, starts: Iterator[int] | list[int], rows: int) -> None:
        """Ask the disk for these stretches of rows, without waiting."""
        for start in starts:
            begin = self._offset + start * self._row_bytes
            end = min(begin + rows * self._row_bytes, len(self._map))
            begin -= begin % mmap.PAGESIZE
            if begin < end:
                self._map.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def release(self) -> None:
        """Give the pages back; they are read again when they are looked at."""
        self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class MappedColumns:
    """The columns in a folder that `write_columns` wrote."""

    arrays: Mapping[str, _MappedArray]

    @staticmethod
    def open(folder: Path) -> "MappedColumns":
        """Map every column."""
        return MappedColumns({p.stem: _MappedArray(p) for p in sorted(folder.glob("*.npy"))})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The columns by name; reading them reads files."""
        return {name: array.tensor for name, array in self.arrays.items()}

    def will_need(self, starts: list[int], rows: int) -> None:
        """Announce stretches of rows that are about to be read, in any order."""
        for array in self.arrays.values():
            array.will_need(starts, rows)

    def release(self) -> None:
        """Keep none of what was read in this process's memory."""
        for array in self.arrays.values():
            array.release()
