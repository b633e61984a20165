"""Tars that were handed over: plain files of a plausible size, and nothing else.

Only headers of the first ustar are read, as `tars.py` and others that leave times and owners out
write them. Extensions could give a member any size or any name after the fact, and a sparse one is
as large as it says.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.tars import BLOCK

KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.XHDTYPE: "a PAX header",
    tarfile.XGLTYPE: "a PAX header",
    tarfile.GNUTYPE_LONGNAME: "a long name",
    tarfile.GNUTYPE_LONGLINK: "a long link",
}


@dataclass(frozen=True)
class Member:
    """A plain file in a tar."""

    name: str
    offset: int
    """Of its payload."""
    size: int


def list_members(path: Path) -> Iterator[Member]:
    """The members of a tar, from its headers alone.

    Raises:
        ValueError: a header that cannot be read; a member that is a link, a device or anything but
            a plain file; a name outside the tar; a size that the tar does not hold.
    """
    end = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < end:
            file.seek(position)
            block = file.read(BLOCK)
            if not any(block):
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise ValueError(
                    f"{path}: found no tar header at byte {position:,} ({error}), expected one; "
                    "run python -m data_prep verify"
                ) from error
            yield _checked(path, info, offset=position + BLOCK, end=end)
            position += BLOCK * (1 + -(-info.size // BLOCK))


def read_members(path: Path) -> Iterator[tuple[Member, bytes]]:
    """The members of a tar with their payloads; raises as `list_members` does."""
    with path.open("rb") as file:
        for member in list_members(path):
            file.seek(member.offset)
            yield member, file.read(member.size)


def _checked(path: Path, info: tarfile.TarInfo, *, offset: int, end: int) -> Member:
    name = PurePosixPath(info.name)
    found = None
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        found = KINDS.get(info.type, f"a member of type {info.type!r}")
    elif not info.name or name.is_absolute() or ".." in name.parts:
        found = "a name outside the tar"
    elif not 0 <= info.size <= end - offset:
        found = f"a size of {info.size:,} bytes with {max(0, end - offset):,} left"
    if found is not None:
        raise ValueError(
            f"{path}: member {info.name!r}: found {found}, expected a plain file inside; use a "
            "dataset of a source that you trust, or make it anew with python -m data_prep shard"
        )
    return Member(info.name, offset, info.size)
