import ctypes
import mmap
import os
import pickle
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_prep.content import ItemContent, reads_of
from data_prep.dataset import open_dataset
from data_prep.folders import Folder
from data_prep.item_shards import write_index
from data_prep.records import item_index, item_key, item_tar
from data_prep.tars import TarWriter

PAGE = mmap.PAGESIZE
PICTURE = bytes(17_000)


def write_tars(folder: Path, *, num_tars: int, items_per_shard: int, picture: bytes) -> Folder:
    for number in range(num_tars):
        with TarWriter(folder / item_tar(number)) as tar:
            for row in range(number * items_per_shard, (number + 1) * items_per_shard):
                members = [("jpg", picture), ("json", b'{"row": %d}' % row)]
                tar.add(row, key=item_key(row), members=members)
        write_index(folder / item_index(number), tar.index)
    return Folder(folder)


def row_of(json: memoryview | None) -> int:
    assert json is not None
    return int(bytes(json)[len('{"row": ') : -1])


@pytest.fixture
def sixty(tmp_path: Path) -> ItemContent:
    """An item a tar."""
    folder = write_tars(tmp_path, num_tars=60, items_per_shard=1, picture=b"x")
    return ItemContent(folder, num_items=60, items_per_shard=1)


def num_mapped(content: ItemContent) -> int:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(content.folder.dir) in line and line.endswith(".tar") for line in lines)


def test_there_may_be_more_tars_than_files_that_a_process_may_open(sixty: ItemContent) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    twenty_free = sorted(set(range(1000)) - used)[20]
    resource.setrlimit(resource.RLIMIT_NOFILE, (twenty_free, limit[1]))
    try:
        bodies = [sixty.json(row) for row in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert [row_of(body) for body in bodies] == list(range(60))


def test_tars_not_used_for_long_are_let_go_and_what_is_in_use_stays(
    sixty: ItemContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.content.max_mapped_files", lambda: 4)
    content = pickle.loads(pickle.dumps(sixty))
    kept = content.json(0)
    rows = np.random.default_rng(0).integers(0, 60, 300).tolist()
    assert [row_of(content.json(row)) for row in rows] == rows
    assert num_mapped(content) <= 5
    assert row_of(kept) == 0
    del kept
    assert num_mapped(content) <= 4


def test_where_an_items_members_lie_takes_16_bytes_a_member(tmp_path: Path) -> None:
    size = 4096
    folder = write_tars(tmp_path, num_tars=3, items_per_shard=size, picture=b"x")
    content = ItemContent(folder, num_items=3 * size, items_per_shard=size)
    content.json(0)  # what is imported by then is not of the items
    tracemalloc.start()
    try:
        for number in (1, 2):
            for member in ("jpg", "json", "sound.wav", "sound.mp3", "sound.flac", "sound.ogg"):
                content.member(member, number * size)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / (2 * size) < 36


def test_one_item_of_tars_beyond_the_memory_makes_the_disk_read_one_item(tmp_path: Path) -> None:
    folder = write_tars(tmp_path, num_tars=1, items_per_shard=400, picture=PICTURE)
    tar = tmp_path / item_tar(0)
    forget(tar)
    content = ItemContent(folder, num_items=400, items_per_shard=400, reads="spans")
    assert bytes(content.image(200) or b"") == PICTURE
    time.sleep(0.2)
    assert resident_pages(tar) < 2 * len(PICTURE) / PAGE + 2
    assert bytes(content.members(300)["jpg"]) == PICTURE
    assert resident_pages(tar) < 4 * len(PICTURE) / PAGE + 2


def test_tars_that_fit_in_the_memory_are_read_ahead_whole(tmp_path: Path) -> None:
    folder = write_tars(tmp_path, num_tars=1, items_per_shard=1600, picture=PICTURE)
    tar = tmp_path / item_tar(0)
    forget(tar)
    content = ItemContent(folder, num_items=1600, items_per_shard=1600, reads="whole")
    assert bytes(content.image(800) or b"") == PICTURE
    num_pages = -(-tar.stat().st_size // PAGE)
    end = time.monotonic() + 20
    while resident_pages(tar) < num_pages and time.monotonic() < end:
        time.sleep(0.05)
    assert resident_pages(tar) == num_pages


def test_tars_are_read_whole_up_to_half_of_the_available_memory(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tar_bytes = sum(path.stat().st_size for path in toy_dataset.glob("items/*.tar"))
    dataset = open_dataset(toy_dataset)
    caplog.set_level("INFO")
    for available, expected in ((2 * tar_bytes, "whole"), (2 * tar_bytes - 1, "spans")):
        monkeypatch.setattr("data_prep.content.available_bytes", lambda value=available: value)
        assert dataset.content().reads == reads_of(tar_bytes) == expected
    assert pickle.loads(pickle.dumps(dataset.content())).reads == "spans"
    assert "read item by item" in caplog.text


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(file):
        pytest.skip(f"{file}: its file system keeps files in memory")


def resident_pages(file: Path) -> int:
    """How many pages of a file are in the page cache, touching none."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    found = np.zeros(-(-len(mapped) // PAGE), np.uint8)
    mincore = ctypes.CDLL(None).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(address, len(mapped), found.ctypes.data) == 0
    return int((found & 1).sum())
