"""A cell of a media column to bytes: they may lie in the cell, in a file, or behind a URL."""

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from data_prep.columns import ItemColumns
from data_prep.credentials import without_credentials
from data_prep.rate_limit import rate_limit
from data_prep.settings import FetchConfig, expand_path

logger = logging.getLogger(__name__)

Cause = Literal["file_missing", "outside_folder", "over_byte_limit", "not_fetched", "not_readable"]
Cell = bytes | str | None
"""Bytes, or a path inside the folder, or a URL."""
Found = bytes | Cause | None
"""A cell's bytes, or why there are none; None of an empty cell."""
PROTOCOLS = (
    *("http", "https", "ftp", "sftp", "ssh", "smb", "webdav", "hf", "hdfs", "webhdfs"),
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss", "oci", "tos"),
)
"""What a cell's URL may begin with. A table that was handed over must not read files of this
machine, which fsspec would do for `file:` and for chains such as `simplecache::file:`."""


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
        self.folder = local_folder(folder, setting=setting)

    def read_all(
        self, cells: Iterable[Cell], *, seen: Callable[[Cell, Found], None] | None = None
    ) -> Iterator[Found]:
        """Every cell's bytes, or why there are none; `seen` is told of each.

        A bounded number is read ahead, so that the network's delay is not waited for one by one.
        Bytes in a cell are neither waited for nor held.
        """
        pending: deque[tuple[Cell, Future[Found] | None]] = deque()

        def next_found() -> Found:
            cell, future = pending.popleft()
            found = future.result() if future is not None else self.read(cell)
            if seen is not None:
                seen(cell, found)
            return found

        with ThreadPoolExecutor(self.fetch.threads) as pool:
            for cell in cells:
                is_elsewhere = isinstance(cell, str)
                pending.append((cell, pool.submit(self.read, cell) if is_elsewhere else None))
                while pending and (pending[0][1] is None or len(pending) > 2 * self.fetch.threads):
                    yield next_found()
            while pending:
                yield next_found()

    def read(self, cell: Cell) -> Found:
        """One cell's bytes, or why there are none."""
        if cell is None or isinstance(cell, bytes):
            return "over_byte_limit" if cell and len(cell) > self.fetch.max_bytes else cell
        protocol, is_url, _ = cell.partition("://")
        if is_url or self.url is not None:
            url = cell if is_url else f"{self.url}/{cell}"
            is_outside = protocol.lower() not in PROTOCOLS if is_url else ".." in cell.split("/")
            return "outside_folder" if is_outside or "::" in cell else self._fetch(url)
        if self.folder is None:
            return "outside_folder"
        return self._read_file(self.folder, cell)

    def _read_file(self, folder: Path, name: str) -> bytes | Cause:
        try:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder):
                return "outside_folder"
            if not path.is_file():
                return "file_missing"
            if path.stat().st_size > self.fetch.max_bytes:
                return "over_byte_limit"
            return path.read_bytes()
        except ValueError:
            return "file_missing"  # no file's name: it has a null byte
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            if getattr(error, "errno", None) == errno.ENAMETOOLONG:
                return "file_missing"
            logger.warning("%s: not readable (%s)", folder / name, error)
            return "not_readable"

    def _fetch(self, url: str) -> bytes | Cause:
        for attempt in range(self.fetch.retries + 1):
            try:
                payload = self._get(url)
            except Exception as error:  # every protocol raises its own; the last one is logged
                if _is_missing(error):
                    return "file_missing"
                if attempt == self.fetch.retries:
                    shown = map(without_credentials, (url, str(error)))
                    logger.warning("%s: not fetched (%s)", *shown)  # workers have no filter
                else:
                    time.sleep(self.fetch.wait_s * 2**attempt)
            else:
                return "over_byte_limit" if len(payload) > self.fetch.max_bytes else payload
        return "not_fetched"

    def _get(self, url: str) -> bytes:
        """What is behind a URL, or one byte more than the limit of it."""
        import fsspec

        files, path = fsspec.url_to_fs(url)
        left = self.fetch.max_bytes + 1
        is_http = "https" in files.protocol
        # fsspec asks for the size first; over HTTP, told one and to read no blocks, it does not,
        # and it takes what it is asked for from a single GET.
        options = {"block_size": 0, "size": left} if is_http else {}
        rate_limit(self.fetch.per_second).wait(requests=1 if is_http else 2)
        pieces = []
        with files.open(path, "rb", **options) as file:
            while left and (piece := file.read(left)):
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)


def local_folder(folder: str | None, *, setting: str) -> Path | None:
    """The folder that paths are relative to; None where they are relative to none, or to a URL."""
    if not folder or "://" in folder:
        return None
    path = expand_path(folder, setting=setting).resolve()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: found no such folder, expected the files that the column's paths name; "
            f"correct {setting}"
        )
    return path


def check_folders(items: ItemColumns) -> None:
    """Refuse a folder that is not there, before hours of other work."""
    for media in ("image", "frames", "sound"):
        if getattr(items, media) is not None:
            local_folder(getattr(items, f"{media}_dir"), setting=f"items.{media}_dir")


def _is_missing(error: Exception) -> bool:
    """Whether a file is not there for good; a server that is down or overloaded comes back."""
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 410
