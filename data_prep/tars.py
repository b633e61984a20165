"""Reproducible ustar files: one buffer, one write, no owner and no time.

A tar's bytes follow from its members alone. `webdataset.ShardWriter` costs ten times as much a
sample and writes the time of day into every header.
"""

import hashlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.records import replace_file

BLOCK = 512
END = bytes(2 * BLOCK)
NAME_BYTES = 100


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
    crc32s: list[int] = field(default_factory=list)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's payload (POSIX.1-1988 ustar)."""
    encoded = name.encode()
    if len(encoded) >= NAME_BYTES:
        raise ValueError(
            f"{name}: found {len(encoded)} bytes, expected a member name below {NAME_BYTES}; "
            "shorten the vector's name"
        )
    header = bytearray(BLOCK)
    header[0 : len(encoded)] = encoded
    header[100:108] = b"0000644\0"
    header[108:124] = b"0000000\x000000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[148:156] = b"        "
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


class TarBuffer:
    """Collects the samples of one tar."""

    def __init__(self) -> None:
        self.index = MemberIndex()
        self._parts: list[bytes] = []
        self._position = 0
        self._samples = 0

    def add(self, sample: int, *, key: str, members: list[tuple[str, bytes]]) -> None:
        """Append a sample's members."""
        for member, payload in members:
            padding = bytes(-len(payload) % BLOCK)
            self._parts += [tar_header(f"{key}.{member}", len(payload)), payload, padding]
            self.index.samples.append(sample)
            self.index.members.append(member)
            self.index.offsets.append(self._position + BLOCK)
            self.index.sizes.append(len(payload))
            self.index.crc32s.append(zlib.crc32(payload))
            self._position += BLOCK + len(payload) + len(padding)
        self._samples += 1

    def write(self, path: Path) -> Receipt:
        """Write everything at once under a temporary name, then rename."""
        payload = b"".join([*self._parts, END])
        replace_file(path, payload)
        digest = hashlib.sha256(payload).hexdigest()
        return Receipt(bytes=len(payload), sha256=digest, samples=self._samples)
