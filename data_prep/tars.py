"""Reproducible ustar files: headers made in bulk, large writes, no owner and no time.

A tar's bytes follow from its members alone. `webdataset.ShardWriter` costs ten times as much a
sample, and by default writes the time of day and a further kilobyte before every member.

Shapes: M members of a chunk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.checksums import Payload, content_hash
from data_prep.records import cannot_write, discard, put_in_place, temporary_file

BLOCK = 512
END = bytes(2 * BLOCK)
NAME_BYTES = 100
CHUNK_BYTES = 1 << 20
"""What is held in memory before it is written."""
MAX_MEMBER_BYTES = 8**11 - 1
"""The largest size that the eleven octal digits of a ustar header hold."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was written."""

    bytes: int
    xxh128: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class MemberIndex:
    """Where each member's payload lies; one entry a member, in the order of the tar."""

    samples: list[int] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)


def tar_headers(names: Sequence[bytes], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The 512 bytes before each member's payload, [M, 512] (POSIX.1-1988 ustar).

    Raises:
        ValueError: a name of 100 bytes or more, or a payload of 8 GiB or more.
    """
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    for member in np.flatnonzero((lengths >= NAME_BYTES) | (sizes > MAX_MEMBER_BYTES)).tolist():
        raise ValueError(
            f"{names[member].decode()}: found a name of {lengths[member]} bytes and a payload of "
            f"{sizes[member]:,}, expected below {NAME_BYTES} and at most {MAX_MEMBER_BYTES:,}; "
            "shorten the vector's name, or leave the file out"
        )
    headers = np.empty((len(names), BLOCK), np.uint8)
    headers[:] = _TEMPLATE
    varying = (headers[:, :NAME_BYTES], headers[:, 124:135])
    padded = np.array(names, f"S{NAME_BYTES}")
    varying[0][:] = padded.view(np.uint8).reshape(len(names), NAME_BYTES)
    varying[1][:] = _octal(sizes, digits=11)
    sums = int(_TEMPLATE.sum()) + sum(part.sum(1, dtype=np.int64) for part in varying)
    headers[:, 148:154] = _octal(sums, digits=6)
    headers[:, 154] = 0
    return headers


def _template() -> NDArray[np.uint8]:
    """A header without name, size and checksum; the checksum counts its own place as blanks."""
    header = np.zeros(BLOCK, np.uint8)
    header[100:108] = np.frombuffer(b"0000644\0", np.uint8)
    header[108:124] = np.frombuffer(b"0000000\x000000000\0", np.uint8)
    header[136:148] = np.frombuffer(b"00000000000\0", np.uint8)
    header[148:156] = ord(" ")
    header[156] = ord("0")
    header[257:265] = np.frombuffer(b"ustar\x0000", np.uint8)
    return header


_TEMPLATE = _template()


def _octal(numbers: NDArray[np.int64], *, digits: int) -> NDArray[np.uint8]:
    shifts = 3 * np.arange(digits - 1, -1, -1)
    octal: NDArray[np.uint8] = ((numbers[:, None] >> shifts) & 7).astype(np.uint8) + ord("0")
    return octal


class TarWriter:
    """Writes samples under a temporary name; closing writes the rest and renames.

    An error inside the `with` block leaves nothing behind. Nothing is flushed to the disk here:
    who vouches for a tar does that (`finish.py`), and a tar that a power cut took is found by its
    size.
    """

    receipt: Receipt
    """Set when the tar is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = MemberIndex()
        try:
            self._temporary = temporary_file(path)
            self._file = self._temporary.open("wb", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._digest = xxhash.xxh3_128()
        self._members: list[tuple[int, str, str, Payload]] = []  # sample, key, member, payload
        self._blocks = np.empty((0, BLOCK), np.uint8)  # a chunk; used again for the next
        self._pending = 0
        self._position = 0
        self._samples = 0

    def add(self, sample: int, *, key: str, members: Iterable[tuple[str, Payload]]) -> None:
        """Append a sample's members."""
        for member, payload in members:
            self._members.append((sample, key, member, payload))
            self._pending += len(payload)
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
            discard(self._temporary)

    def _close(self) -> None:
        self._flush()
        self._write(END)
        put_in_place(self._temporary, self.path)
        self.receipt = Receipt(
            bytes=self._position, xxh128=self._digest.hexdigest(), samples=self._samples
        )

    def _flush(self) -> None:
        """Write what is pending, as one piece."""
        if not self._members:
            return
        samples, keys, members, payloads = zip(*self._members, strict=True)
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        ends = np.cumsum(1 + -(-sizes // BLOCK))  # in blocks
        begins = np.concatenate([[0], ends[:-1]])
        if len(self._blocks) < ends[-1]:
            self._blocks = np.empty((ends[-1], BLOCK), np.uint8)
        chunk = self._blocks[: ends[-1]]
        chunk[ends - 1] = 0  # what pads the last block of a payload
        names = [f"{key}.{member}".encode() for key, member in zip(keys, members, strict=True)]
        chunk[begins] = tar_headers(names, sizes)
        place, starts = memoryview(chunk.reshape(-1)), (begins + 1) * BLOCK  # type: ignore[arg-type]
        ends = starts + sizes
        for start, end, payload in zip(starts.tolist(), ends.tolist(), payloads, strict=True):
            place[start:end] = payload
        index = self.index
        index.samples.extend(samples)
        index.members.extend(members)
        index.offsets.extend((self._position + starts).tolist())
        index.sizes.extend(sizes.tolist())
        index.hashes.extend(map(content_hash, payloads))
        self._write(place)
        self._members, self._pending = [], 0

    def _write(self, chunk: Payload) -> None:
        self._digest.update(chunk)
        self._position += len(chunk)
        left = memoryview(chunk)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error
