"""Reproducible ustar files: headers made in bulk, large writes, no owner and no time.

A tar's bytes follow from its members alone. `webdataset.ShardWriter` costs ten times as much a
sample, and by default writes the time of day and a further kilobyte before every member.

Shapes: M members of a chunk.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash
from numpy.typing import NDArray

BLOCK = 512
END = bytes(2 * BLOCK)
NAME_BYTES = 100
CHUNK_BYTES = 4 << 20
"""What is held in memory before it is written."""
MAX_MEMBER_BYTES = 8**11 - 1
"""The largest size that the eleven octal digits of a ustar header hold."""

Payload = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was written."""

    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class MemberIndex:
    """Where each member's payload lies; one entry a member, in the order of the tar."""

    samples: list[int] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)


def content_hash(payload: Payload) -> int:
    """64 bits that two payloads share if, for all practical purposes, they are the same (XXH3)."""
    return xxhash.xxh3_64_intdigest(payload)


def tar_headers(names: Sequence[bytes], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The 512 bytes before each member's payload, [M, 512] (POSIX.1-1988 ustar).

    Raises:
        ValueError: a name of 100 bytes or more, or a payload of 8 GiB or more.
    """
    for name, size in zip(names, sizes.tolist(), strict=True):
        if len(name) >= NAME_BYTES or size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{name.decode()}: found a name of {len(name)} bytes and a payload of {size:,}, "
                f"expected below {NAME_BYTES} and at most {MAX_MEMBER_BYTES:,}; shorten the "
                "vector's name, or leave the file out"
            )
    headers = np.zeros((len(names), BLOCK), np.uint8)
    padded = np.array(names, f"S{NAME_BYTES}")
    headers[:, :NAME_BYTES] = padded.view(np.uint8).reshape(len(names), NAME_BYTES)
    headers[:, 100:108] = np.frombuffer(b"0000644\0", np.uint8)
    headers[:, 108:124] = np.frombuffer(b"0000000\x000000000\0", np.uint8)
    headers[:, 124:135] = _octal(sizes, digits=11)
    headers[:, 136:148] = np.frombuffer(b"00000000000\0", np.uint8)
    headers[:, 148:156] = ord(" ")
    headers[:, 156] = ord("0")
    headers[:, 257:265] = np.frombuffer(b"ustar\x0000", np.uint8)
    headers[:, 148:154] = _octal(headers.sum(1, dtype=np.int64), digits=6)
    headers[:, 154] = 0
    return headers


def _octal(numbers: NDArray[np.int64], *, digits: int) -> NDArray[np.uint8]:
    shifts = 3 * np.arange(digits - 1, -1, -1)
    octal: NDArray[np.uint8] = ((numbers[:, None] >> shifts) & 7).astype(np.uint8) + ord("0")
    return octal


class TarWriter:
    """Writes samples under a temporary name; closing writes the rest and renames.

    An error inside the `with` block leaves nothing behind.
    """

    receipt: Receipt
    """Set when the tar is closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.index = MemberIndex()
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._names: list[bytes] = []
        self._payloads: list[Payload] = []
        self._pending = 0
        self._position = 0
        self._samples = 0

    def add(self, sample: int, *, key: str, members: Sequence[tuple[str, Payload]]) -> None:
        """Append a sample's members."""
        index = self.index
        for member, payload in members:
            size = len(payload)
            self._names.append(f"{key}.{member}".encode())
            self._payloads.append(payload)
            index.samples.append(sample)
            index.members.append(member)
            index.offsets.append(self._position + BLOCK)
            index.sizes.append(size)
            index.hashes.append(content_hash(payload))
            self._position += BLOCK + size + -size % BLOCK
            self._pending += size
        self._samples += 1
        if self._pending >= CHUNK_BYTES:
            self._flush()

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._close()
        finally:
            self._temporary.unlink(missing_ok=True)  # not there where it was renamed

    def _close(self) -> None:
        self._flush()
        self._write(END)
        os.fsync(self._file.fileno())
        self._temporary.replace(self.path)
        self.receipt = Receipt(
            bytes=self._position + len(END),
            sha256=self._sha256.hexdigest(),
            samples=self._samples,
        )

    def _flush(self) -> None:
        """Write what is pending, as one piece."""
        if not self._names:
            return
        sizes = np.fromiter(map(len, self._payloads), np.int64, len(self._payloads))
        headers = memoryview(tar_headers(self._names, sizes).tobytes())
        parts: list[Payload] = []
        for number, payload in enumerate(self._payloads):
            start = number * BLOCK
            parts += (headers[start : start + BLOCK], payload, END[: -len(payload) % BLOCK])
        self._write(b"".join(parts))
        self._names, self._payloads, self._pending = [], [], 0

    def _write(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        left = memoryview(chunk)
        while left:
            left = left[self._file.write(left) :]
