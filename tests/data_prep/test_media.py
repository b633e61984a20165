import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from data_prep.media import MediaReader
from data_prep.settings import FetchConfig


def reader(folder: str | None, **settings: float) -> MediaReader:
    return MediaReader(folder, setting="items.image_dir", fetch=FetchConfig(**settings))


class Pictures(http.server.BaseHTTPRequestHandler):
    """Serves the path's own name; `flaky` fails twice, `down` always."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        fails = self.path == "/down" or (self.path == "/flaky" and self.asked.count("/flaky") < 3)
        self.send_response(503 if fails else 404 if self.path == "/gone" else 200)
        body = self.path.encode() * (2000 if self.path == "/large" else 1)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Pictures.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_files_come_in_order_and_what_is_not_there_is_a_cause(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    cells = [*(f"{number}.jpg" for number in range(40)), None, "none.jpg", b"in the cell"]
    found = list(reader(str(tmp_path)).read_all(cells))
    assert found == [*(b"%d" % n for n in range(40)), None, "file_missing", b"in the cell"]


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "file:///etc/hostname", "a/../../b"]
)
def test_a_path_out_of_the_folder_is_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    assert reader(str(tmp_path / "in")).read(name) == "outside_folder"
    assert reader(None).read(name) == "outside_folder"


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(2000))
    small = reader(str(tmp_path), max_mb=0.001)
    assert small.read("large") == "over_byte_limit"
    assert small.read(bytes(2000)) == "over_byte_limit"


def test_urls_are_fetched_again_when_they_fail(url: str) -> None:
    reads = reader(url, retries=2, wait_s=0.01, max_mb=0.002)
    cells = ["one", f"{url}/two", "flaky", "down", "gone", "large", "../up"]
    assert list(reads.read_all(cells)) == [
        *(b"/one", b"/two", b"/flaky", "not_fetched", "file_missing", "over_byte_limit"),
        "outside_folder",
    ]
    assert Pictures.asked.count("/down") == 3
    assert Pictures.asked.count("/gone") == 1


def test_requests_keep_to_the_rate(url: str) -> None:
    reads = reader(url, per_second=50)
    begin = time.monotonic()
    assert all(isinstance(one, bytes) for one in reads.read_all(["x"] * 16))
    assert time.monotonic() - begin >= 15 / 50
