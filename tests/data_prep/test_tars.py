import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.checksums import checksum, content_hash, file_checksum
from data_prep.tars import CHUNK_BYTES, TarWriter, tar_headers


def payloads(count: int, *, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(int(size)) for size in rng.integers(0, 3000, count)]


def test_headers_are_those_of_pythons_tarfile() -> None:
    names, sizes = [b"0000000001.jpg", b"a/b.json", b"x" * 99], [0, 511, 8**11 - 1]
    for name, size, header in zip(names, sizes, tar_headers(names, np.array(sizes)), strict=True):
        info = tarfile.TarInfo(name.decode())
        info.size, info.mode, info.mtime = size, 0o644, 0
        assert header.tobytes() == info.tobuf(tarfile.USTAR_FORMAT)


def test_members_are_read_back_by_tarfile_and_found_by_the_index(tmp_path: Path) -> None:
    stored = payloads(300)
    with TarWriter(tmp_path / "a.tar") as tar:
        for number, payload in enumerate(stored):
            tar.add(number, key=f"{number:04d}", members=[("bin", memoryview(payload))])
    file = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as read:
        assert [read.extractfile(one).read() for one in read] == stored
    spans = zip(tar.index.offsets, tar.index.sizes, strict=True)
    assert [file[start : start + size] for start, size in spans] == stored
    assert tar.index.hashes == [content_hash(payload) for payload in stored]
    assert tar.receipt.bytes == len(file)
    assert tar.receipt.xxh128 == checksum(file)


def test_the_bytes_do_not_depend_on_where_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, chunk in (("a", CHUNK_BYTES), ("b", 1000)):
        monkeypatch.setattr("data_prep.tars.CHUNK_BYTES", chunk)
        with TarWriter(tmp_path / name) as tar:
            for number, payload in enumerate(payloads(50)):
                tar.add(number, key=str(number), members=[("x", payload), ("y", b"")])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_error_leaves_no_file_under_any_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError), TarWriter(tmp_path / "a.tar") as tar:
        tar.add(0, key="0", members=[("x", b"1"), ("y", None)])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_ustar_cannot_hold_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="shorten the vector's name"),
        TarWriter(tmp_path / "a.tar") as tar,
    ):
        tar.add(0, key="0" * 90, members=[("a_long_name.npy", b"1")])


def test_two_writers_of_a_tar_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    first, second, killed = TarWriter(path), TarWriter(path), TarWriter(path)
    stored = [bytes([number]) * 100_000 for number in range(40)]
    for count, tar in ((40, first), (12, killed), (25, second)):
        for number in range(count):
            tar.add(number, key=str(number), members=[("x", stored[number])])
    with first:
        pass
    assert file_checksum(path) == first.receipt.xxh128
    assert list(tmp_path.iterdir()) == [path]  # nothing of the one that was killed
    with second:
        for number in range(25, 40):
            second.add(number, key=str(number), members=[("x", stored[number])])
    assert second.receipt == first.receipt
    assert file_checksum(path) == first.receipt.xxh128
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_tar(tmp_path: Path) -> None:
    tar = TarWriter(tmp_path / "a.tar")
    tar._file = Path("/dev/full").open("wb", buffering=0)
    with pytest.raises(OSError, match=r"a\.tar: cannot be written .*No space.*make room"), tar:
        tar.add(0, key="0", members=[("x", bytes(CHUNK_BYTES))])
    assert list(tmp_path.iterdir()) == []


def test_a_tar_is_written_in_large_pieces(tmp_path: Path) -> None:
    class Counting(io.FileIO):
        sizes: list[int] = []  # noqa: RUF012 - one file a test

        def write(self, payload: Any) -> int:  # noqa: ANN401
            self.sizes.append(len(payload))
            return super().write(payload)

    with TarWriter(tmp_path / "a.tar") as tar:
        tar._file = Counting(tar._file.name, "wb")
        for number, payload in enumerate(payloads(5000)):
            tar.add(number, key=str(number), members=[("x", payload)])
    *full, _, end = Counting.sizes
    assert sum(Counting.sizes) == tar.receipt.bytes
    assert len(full) > 5
    assert min(full) > CHUNK_BYTES
    assert end == 1024
