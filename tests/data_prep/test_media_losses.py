"""Pictures that are not there: one error that says what to do, and another attempt."""

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from data_prep.dataset import open_dataset
from data_prep.settings import FetchConfig, RunConfig, ShardConfig
from data_prep.shard import shard_dataset

if TYPE_CHECKING:
    from conftest import SmallWorld

NAMES = [f"{number}.jpg" for number in range(6)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture
def pictures(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    """A folder of pictures that differ."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for side, name in enumerate(NAMES, start=20):
        (folder / name).write_bytes(make_jpeg(side, side))
    return folder


@pytest.fixture
def outage(pictures: Path) -> Iterator[tuple[str, set[str]]]:
    """The pictures behind a URL, and the names that the server fails to serve just now."""
    failing: set[str] = set()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(pictures))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.path.strip("/") in failing:
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", failing
        server.shutdown()


def with_paths(small: "SmallWorld", image_dir: Path | str, **changes: object) -> ShardConfig:
    """Settings of the small world, whose pictures lie in files; its tables are written."""
    small.items["image"] = pa.array(NAMES)
    items = dataclasses.replace(small.config().items, image_dir=str(image_dir))
    config = small.config(items=items, fetch=FetchConfig(retries=1, wait_s=0.01), **changes)
    small.write()
    return config


def test_a_folder_that_is_not_there_is_an_error_before_anything_is_made(
    small: "SmallWorld", tmp_path: Path
) -> None:
    config = with_paths(small, tmp_path / "typo")
    with pytest.raises(FileNotFoundError, match=r"typo: found no such folder.* items\.image_dir"):
        shard_dataset(config)
    assert not (tmp_path / "dataset").exists()


def test_most_pictures_missing_is_an_error_until_they_are_there(
    small: "SmallWorld", pictures: Path, tmp_path: Path
) -> None:
    complete = with_paths(small, pictures, dataset_dir=str(tmp_path / "complete"))
    shard_dataset(complete)
    for name in NAMES[:4]:
        (pictures / name).rename(tmp_path / name)
    config = dataclasses.replace(complete, dataset_dir=str(tmp_path / "dataset"))
    message = r"items\.image: found no file for 4 of 6 cells \(the first: 3\.jpg\), .* of 0\.5;"
    with pytest.raises(ValueError, match=message):
        shard_dataset(config)
    for name in NAMES[:4]:
        (tmp_path / name).rename(pictures / name)
    shard_dataset(config)
    assert digests(tmp_path / "dataset") == digests(tmp_path / "complete")


def test_any_share_of_missing_pictures_can_be_accepted(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = with_paths(small, tmp_path / "empty")
    with pytest.raises(ValueError, match="found no file for 6 of 6 cells"):
        shard_dataset(config)
    manifest = shard_dataset(config, RunConfig(max_missing_share=1))
    assert manifest is not None
    assert manifest.quarantine == {"pictures/file_missing": 6}


def test_what_a_server_failed_to_send_is_fetched_by_the_same_command(
    small: "SmallWorld", outage: tuple[str, set[str]], tmp_path: Path
) -> None:
    url, failing = outage
    complete = with_paths(small, url, dataset_dir=str(tmp_path / "complete"))
    shard_dataset(complete)
    config = dataclasses.replace(complete, dataset_dir=str(tmp_path / "dataset"))
    failing.add("0.jpg")  # of the first row, which is the last item: the second tar
    message = r"items\.image: could not read 1 of 6 cells \(the first: 0\.jpg\).* same command"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            shard_dataset(config)
    first = tmp_path / "dataset/items/items-000000.tar"
    before = first.stat().st_mtime_ns
    failing.clear()
    shard_dataset(config)
    assert first.stat().st_mtime_ns == before  # it lacked nothing
    assert digests(tmp_path / "dataset") == digests(tmp_path / "complete")


def test_what_a_server_failed_to_send_can_be_accepted(
    small: "SmallWorld", outage: tuple[str, set[str]], tmp_path: Path
) -> None:
    url, failing = outage
    failing.add("0.jpg")
    config = with_paths(small, url)
    with pytest.raises(ValueError, match="accept them with a larger --max_not_fetched_share"):
        shard_dataset(config)
    last = tmp_path / "dataset/items/items-000001.tar"
    before = last.stat().st_mtime_ns
    shard_dataset(config, RunConfig(max_not_fetched_share=0.2))
    assert last.stat().st_mtime_ns == before
    dataset = open_dataset(tmp_path / "dataset")
    assert dataset.manifest.quarantine == {"pictures/not_fetched": 1}
    assert dataset.items["has_image"].to_pylist() == [True] * 5 + [False]


def test_parts_end_with_the_error_of_one_run(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = with_paths(small, tmp_path / "empty")
    shard_dataset(config, RunConfig(stage="tables"))
    for part in range(2):
        shard_dataset(config, RunConfig(stage="content", part=part, num_parts=2))
    with pytest.raises(ValueError, match=r"found no file for 6 of 6 cells \(the first: 5\.jpg\)"):
        shard_dataset(config, RunConfig(stage="manifest"))
    assert not (tmp_path / "dataset/manifest.json").exists()
