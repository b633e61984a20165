"""What tells whether bytes are still those that were written.

XXH3 finds every damage that disks, networks and cut-off copies do, at the speed of memory. It is
no defence against somebody who forges a file: who can write to a dataset folder can write its
manifest too. `xxhsum -H2` prints the same digest of a file.
"""

from pathlib import Path

import xxhash

Payload = bytes | memoryview


def content_hash(payload: Payload) -> int:
    """64 bits that two payloads share if, for all practical purposes, they are the same (XXH3)."""
    return xxhash.xxh3_64_intdigest(payload)


def checksum(payload: Payload) -> str:
    """XXH3 of 128 bits, in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(payload)


def file_checksum(path: Path) -> str:
    """`checksum` of a whole file, a piece of it in memory."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
    return digest.hexdigest()
