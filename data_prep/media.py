"""A cell of a media column to bytes: they may lie in the cell, in a file, or behind a URL."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from data_prep.settings import FetchConfig, expand_path

logger = logging.getLogger(__name__)

Cause = Literal["file_missing", "outside_folder", "over_byte_limit", "not_fetched"]
Cell = bytes | str | None
"""Bytes, or a path inside the folder, or a URL."""


class MediaReader:
    """Reads cells, several at a time, in their order."""

    def __init__(self, folder: str | None, *, setting: str, fetch: FetchConfig) -> None:
        """Say where relative paths lie.

        Args:
            folder: a local folder or a URL, None where the cells hold bytes or whole URLs.
            setting: its name, for errors.
            fetch: retries, rate and limits.
        """
        self.fetch = fetch
        self.url = folder.rstrip("/") if folder and "://" in folder else None
        self.folder = (
            expand_path(folder, setting=setting).resolve() if folder and not self.url else None
        )
        self._turn = threading.Lock()
        self._next_time = 0.0

    def read_all(self, cells: Iterable[Cell]) -> Iterator[bytes | Cause | None]:
        """Every cell's bytes, or why there are none; None for an empty cell.

        A bounded number is read ahead, so that the network's delay is not waited for one by one.
        """
        pending: deque[Future[bytes | Cause | None]] = deque()
        with ThreadPoolExecutor(self.fetch.threads) as pool:
            for cell in cells:
                pending.append(self._start(cell, pool))
                if len(pending) > 2 * self.fetch.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _start(self, cell: Cell, pool: ThreadPoolExecutor) -> Future[bytes | Cause | None]:
        if isinstance(cell, str):
            return pool.submit(self.read, cell)
        done: Future[bytes | Cause | None] = Future()  # nothing to wait for
        done.set_result(self.read(cell))
        return done

    def read(self, cell: Cell) -> bytes | Cause | None:
        """One cell's bytes, or why there are none."""
        if cell is None or isinstance(cell, bytes):
            return "over_byte_limit" if cell and len(cell) > self.fetch.max_bytes else cell
        if "://" in cell:
            # A table that was handed over must not name files of this machine as URLs.
            return "outside_folder" if cell.startswith(("file:", "local:")) else self._fetch(cell)
        if self.url is not None:
            return (
                "outside_folder" if ".." in cell.split("/") else self._fetch(f"{self.url}/{cell}")
            )
        if self.folder is None:
            return "outside_folder"
        return self._read_file(self.folder, cell)

    def _read_file(self, folder: Path, name: str) -> bytes | Cause:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            return "outside_folder"
        if not path.is_file():
            return "file_missing"
        if path.stat().st_size > self.fetch.max_bytes:
            return "over_byte_limit"
        return path.read_bytes()

    def _fetch(self, url: str) -> bytes | Cause:
        import fsspec

        for attempt in range(self.fetch.retries + 1):
            self._wait_for_turn()
            try:
                with fsspec.open(url, "rb") as file:
                    payload: bytes = file.read(self.fetch.max_bytes + 1)
            except Exception as error:  # every protocol raises its own; the last one is logged
                if _is_missing(error):
                    return "file_missing"
                if attempt == self.fetch.retries:
                    logger.warning("%s: not fetched (%s)", url, error)
                else:
                    time.sleep(self.fetch.wait_s * 2**attempt)
            else:
                return "over_byte_limit" if len(payload) > self.fetch.max_bytes else payload
        return "not_fetched"

    def _wait_for_turn(self) -> None:
        """Keep to the rate over all threads of this process."""
        if not self.fetch.per_second:
            return
        with self._turn:
            now = time.monotonic()
            wait = max(0.0, self._next_time - now)
            self._next_time = max(now, self._next_time) + 1 / self.fetch.per_second
        time.sleep(wait)


def _is_missing(error: Exception) -> bool:
    """Whether a file is not there for good: fsspec says so of any HTTP error, and 503 passes."""
    status = getattr(error.__cause__, "status", None)
    return isinstance(error, FileNotFoundError) and status in (None, 404, 410)
