import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset import open_dataset
from data_prep.folders import CACHE_VARIABLE, url_of


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - one server a test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """URL of a copy of the toy dataset, and the copy."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    copy = Path(shutil.copytree(toy_dataset, tmp_path / "copy"))
    Quiet.asked.clear()
    handler = functools.partial(Quiet, directory=str(copy))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", copy
        server.shutdown()


def test_a_dataset_behind_a_url_is_the_one_on_disk(
    served: tuple[str, Path], toy_dataset: Path
) -> None:
    url, _ = served
    here, there = open_dataset(toy_dataset), open_dataset(Path(url))
    assert there.items.equals(here.items)
    assert there.impressions("test").equals(here.impressions("test"))
    np.testing.assert_array_equal(there.events().item_rows, here.events().item_rows)
    near, far = here.content(), there.content()
    assert not any("items-" in path for path in Quiet.asked)
    for row in (0, 70, 5, 239):
        assert far.members(row) == near.members(row)
    assert sum(path.endswith("items-000000.tar") for path in Quiet.asked) == 1


def test_files_are_fetched_once_by_all_processes(served: tuple[str, Path]) -> None:
    url, _ = served
    code = (
        "import sys; from data_prep.dataset import open_dataset; "
        "content = open_dataset(sys.argv[1]).content(); "
        "[content.read(row) for row in range(240)]"
    )
    readers = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [reader.wait() for reader in readers] == [0, 0, 0]
    tars = [path for path in Quiet.asked if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 4


def test_a_damaged_copy_is_not_kept(
    served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, copy = served
    dataset = open_dataset(url)
    tar = copy / "items/items-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(OSError, match=r"items-000001\.tar: not fetched in 4 attempts .*checksum"):
        dataset.content().read(64)
    assert not list(dataset.dir.glob("items/items-000001.tar*[!k]"))


def test_a_copy_that_was_cut_is_fetched_again(served: tuple[str, Path]) -> None:
    url, copy = served
    cached = open_dataset(url).folder.path("items/items-000001.tar")
    cached.write_bytes(cached.read_bytes()[:1000])
    again = open_dataset(url).folder.path("items/items-000001.tar")
    assert again.read_bytes() == (copy / "items/items-000001.tar").read_bytes()


@pytest.mark.parametrize("place", ["users/../../../../outside.tar", "{absolute}/outside.tar"])
def test_a_manifest_cannot_name_a_file_outside_of_its_folder(
    served: tuple[str, Path], tmp_path: Path, place: str
) -> None:
    url, copy = served
    path = place.format(absolute=tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][-1]["path"] = path
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for folder in (url, copy):
        with pytest.raises(ValueError, match=r"outside\.tar', expected paths inside"):
            open_dataset(folder)


def test_a_url_without_a_manifest_is_one_error(served: tuple[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no manifest\.json"):
        open_dataset(served[0] + "/nowhere")


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "https://host/x/", "memory://a", "file:///a"])
def test_a_url_survives_being_made_a_path(url: str) -> None:
    assert url_of(url) == url_of(Path(url)) == url.rstrip("/")
    assert url_of("/data/a") is url_of("data/a:b") is None
