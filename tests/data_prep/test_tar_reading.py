"""Tars that were handed over hold plain files and nothing else."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.dataset import open_dataset
from data_prep.tar_reading import list_members, read_members
from data_prep.tars import TarWriter


def made(path: Path, change: Callable[[tarfile.TarInfo], None], *, format: int) -> Path:
    """A tar of two members, the second one changed."""
    with tarfile.open(path, "w", format=format) as tar:
        for name in ("a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            if name == "b.txt":
                change(info)
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


def set_to(**values: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return change


LINK = {"linkname": "/etc/passwd", "size": 0}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": "../b.txt"}, "a name outside the tar"),
        ({"name": "x/../../b.txt"}, "a name outside the tar"),
        ({"name": "/etc/b.txt"}, "a name outside the tar"),
        ({"type": tarfile.SYMTYPE, **LINK}, "a symbolic link"),
        ({"type": tarfile.LNKTYPE, **LINK}, "a hard link"),
        ({"type": tarfile.CHRTYPE, "size": 0, "devmajor": 1}, "a character device"),
        ({"type": tarfile.BLKTYPE, "size": 0}, "a block device"),
        ({"type": tarfile.FIFOTYPE, "size": 0}, "a named pipe"),
        ({"type": tarfile.DIRTYPE, "size": 0}, "a folder"),
        ({"type": b"Z"}, "a member of type b'Z'"),
    ],
)
def test_what_is_no_plain_file_inside_is_refused(
    tmp_path: Path, change: dict[str, object], found: str
) -> None:
    tar = made(tmp_path / "x.tar", set_to(**change), format=tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match=rf"x.tar: member .*: found {found}, expected a plain"):
        list(read_members(tar))


@pytest.mark.parametrize("digits", [b"77777777777", b"00000004000"])
def test_a_size_that_the_tar_does_not_hold_is_refused_unread(tmp_path: Path, digits: bytes) -> None:
    tar = made(tmp_path / "x.tar", set_to(), format=tarfile.USTAR_FORMAT)
    payload = bytearray(tar.read_bytes())[: 4 * 512]
    header = payload[1024:1536]
    header[124:135], header[148:156] = digits, b" " * 8
    header[148:154] = b"%06o" % sum(header)
    header[154:155] = b"\0"
    tar.write_bytes(payload[:1024] + header + payload[1536:])
    with pytest.raises(ValueError, match=r"found a size of [\d,]+ bytes with 512 left"):
        list(read_members(tar))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extensions_that_change_names_and_sizes_are_refused(tmp_path: Path, format: int) -> None:
    tar = made(tmp_path / "x.tar", set_to(name="n" * 300), format=format)
    with pytest.raises(ValueError, match=r"found a (PAX header|long name)"):
        list(read_members(tar))


def test_a_sparse_member_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.bin")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (1 << 32)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(ValueError, match=r"x\.tar"):
        list(read_members(tmp_path / "x.tar"))


def test_bytes_that_are_no_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="found no tar header at byte 0"):
        list(list_members(tmp_path / "x.tar"))


def test_members_of_our_own_tars_are_read_as_they_were_written(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as writer:
        writer.add(0, key="000", members=[("a.txt", b"one"), ("b.bin", bytes(600))])
        writer.add(1, key="001", members=[("a.txt", b"")])
    found = [(member.name, payload) for member, payload in read_members(tmp_path / "x.tar")]
    assert found == [("000.a.txt", b"one"), ("000.b.bin", bytes(600)), ("001.a.txt", b"")]


def test_a_dataset_with_a_link_among_its_users_is_refused(
    toy_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_dataset, tmp_path / "copy")
    (path,) = (tmp_path / "copy" / "users").glob("*.tar")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("000000.events.arrow")
        set_to(type=tarfile.SYMTYPE, **LINK)(info)
        tar.addfile(info)
    with pytest.raises(ValueError, match="found a symbolic link"):
        open_dataset(tmp_path / "copy").events()
