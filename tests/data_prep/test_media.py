import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from data_prep.media import MediaReader
from data_prep.media_losses import MediaCount
from data_prep.settings import FetchConfig


def reader(folder: str | None, **settings: float) -> MediaReader:
    return MediaReader(folder, setting="items.image_dir", fetch=FetchConfig(**settings))


class Pictures(http.server.BaseHTTPRequestHandler):
    """Serves the path's own name; `flaky` fails twice, `down` always."""

    asked: ClassVar[list[str]] = []
    always_down: ClassVar[bool] = False

    def do_GET(self) -> None:
        self.asked.append(self.path)
        fails = (
            self.always_down
            or self.path == "/down"
            or (self.path == "/flaky" and self.asked.count("/flaky") < 3)
        )
        self.send_response(503 if fails else 404 if self.path == "/gone" else 200)
        body = self.path.encode() * (2000 if self.path == "/large" else 1)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
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
    "name",
    [
        *(
            "../secret",
            "/etc/hostname",
            "a/../../b",
            "file:///etc/hostname",
            "FILE:///etc/hostname",
        ),
        *(
            "local:///etc/hostname",
            "simplecache::file:///etc/hostname",
            "dir://hostname::file:///etc",
        ),
        *("generic://file:///etc/hostname", "http://x/::file:///etc/hostname"),
    ],
)
def test_a_path_out_of_the_folder_is_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    assert reader(str(tmp_path / "in")).read(name) == "outside_folder"
    assert reader(None).read(name) == "outside_folder"


def test_a_chain_is_no_name_behind_a_url() -> None:
    assert reader("http://127.0.0.1:1", retries=0).read("x::file:///etc") == "outside_folder"
    assert reader("http://127.0.0.1:1", retries=0).read("x::file") == "outside_folder"


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg"])
def test_what_cannot_be_a_files_name_is_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "b.jpg").write_bytes(b"b")
    assert list(reader(str(tmp_path)).read_all([name, "b.jpg"])) == ["file_missing", b"b"]


def test_a_file_that_may_not_be_read_is_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> bytes:  # as root one may read every file
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert reader(str(tmp_path)).read("a.jpg") == "not_readable"
    assert "a.jpg: not readable ([Errno 13] Permission denied)" in caplog.text


def test_bytes_in_cells_are_not_held() -> None:
    taken = []
    cells = (taken.append(number) or b"%d" % number for number in range(40))
    found = reader(None).read_all(cells)
    assert next(found) == b"0"
    assert taken == [0]


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


def test_a_server_that_is_down_is_asked_again_and_nothing_is_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def drop() -> None:
            while connection := server.accept()[0]:
                connections.append(connection)
                connection.close()

        threading.Thread(target=drop, daemon=True).start()
        port = server.getsockname()[1]
        reads = reader(None, retries=2, wait_s=0.01)
        assert reads.read(f"http://127.0.0.1:{port}/a.jpg") == "not_fetched"
        assert len(connections) >= 3
    assert reads.read("http://127.0.0.1:1/a.jpg") == "not_fetched"  # refused
    assert reads.read("http://no-such-host.invalid/a.jpg") == "not_fetched"


def test_a_cell_that_is_lost_shows_no_credentials(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Worker processes log too, and the first lost cell is kept in a receipt."""
    cell, count = f"{url}/down?token=hunter2", MediaCount()
    Pictures.asked.clear()
    Pictures.always_down = True
    try:
        found = list(reader(None, retries=0).read_all([cell], seen=count.add))
    finally:
        Pictures.always_down = False
    assert found == ["not_fetched"]
    assert Pictures.asked == ["/down?token=hunter2"]  # it was sent
    assert "down?***: not fetched" in caplog.text
    assert "hunter2" not in caplog.text
    assert count.first == {"not_fetched": f"{url}/down?***"}


def test_requests_of_all_columns_keep_to_one_rate(url: str) -> None:
    readers = [reader(url, per_second=50) for _ in range(3)]
    begin = time.monotonic()
    threads = [
        threading.Thread(target=lambda one=one: list(one.read_all(["x"] * 10))) for one in readers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    assert len(Pictures.asked) >= 30
    assert seconds >= (len(Pictures.asked) - 1) / 50
