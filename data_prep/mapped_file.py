"""A file mapped into memory, and what the kernel is told of how it will be read."""

import ctypes
import mmap
from pathlib import Path
from typing import Literal

import pyarrow as pa

Reads = Literal["whole", "spans"]
"""whole: all of the file is wanted before long; spans: a few places of it, each announced."""

ADVICE_BYTES = 1 << 20
"""The kernel takes no more than this of one piece of advice."""

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """A file's bytes, not copied, for as long as anything refers to them.

    Mapped by Arrow, as Python's `mmap` holds a file descriptor for each, of which a process often
    has a thousand; and advised through the C library, as only Python's `mmap` has `madvise`.
    """

    def __init__(self, path: Path, *, reads: Reads) -> None:
        self.reads = reads
        with pa.memory_map(str(path)) as file:
            first = file.read_buffer(1)  # not all, which Arrow would announce to the kernel
            mapped = pa.foreign_buffer(first.address, file.size(), base=first)
        self._bytes = memoryview(mapped).cast("B")
        self._address = mapped.address
        if reads == "whole":
            # Long reads now spare a slow disk a seek for each span.
            self._announce(0, len(self))
        else:
            # Or the kernel reads megabytes around every page that is touched.
            _madvise(self._address, len(self), mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return len(self._bytes)

    def span(self, begin: int, end: int) -> memoryview:
        """Some of the bytes. In a file read by spans the disk is asked for them, not waited for.

        So whoever wants many takes all of them before it looks into the first.
        """
        if self.reads == "spans":
            self._announce(begin - begin % mmap.PAGESIZE, end)
        return self._bytes[begin:end]

    def _announce(self, begin: int, end: int) -> None:
        for start in range(begin, end, ADVICE_BYTES):
            length = min(ADVICE_BYTES, end - start)
            _madvise(self._address + start, length, mmap.MADV_WILLNEED)


def max_mapped_files() -> int:
    """How many tars to keep mapped, and how many files of token ids.

    Either is a quarter of the maps that Linux lets a process have; half is left to libraries and to
    batches in use.
    """
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) // 4
    except FileNotFoundError:  # not Linux
        return 1 << 14
