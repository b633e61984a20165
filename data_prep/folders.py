"""Where a dataset's files are read: on this machine, or behind a URL through a local cache."""

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.checksums import file_checksum
from data_prep.credentials import HIDDEN
from data_prep.manifest import FileEntry, Manifest
from data_prep.records import MANIFEST_FILE, replace_file

CACHE_VARIABLE = "TRIPTYCH_CACHE"
ATTEMPTS = 4
SPARE_BYTES = 256 << 20
"""Disk left free by the cache."""


@dataclass(frozen=True)
class Folder:
    """A dataset folder on this machine."""

    dir: Path

    def path(self, name: str) -> Path:
        """Where a file of the dataset lies."""
        return self.dir / name


@dataclass(frozen=True)
class CachedFolder(Folder):
    """A dataset folder behind a URL; whole files are fetched when first needed, and kept.

    Several processes may share the cache: one fetches a file, the others wait for it.
    """

    url: str
    files: dict[str, FileEntry]

    def path(self, name: str) -> Path:
        """Where the file's copy lies, fetched and checked against the manifest.

        Raises:
            FileNotFoundError: the manifest does not name the file.
            OSError: it cannot be fetched, or the disk is full.
        """
        from filelock import FileLock

        target = self.dir / name
        if name == MANIFEST_FILE:  # here since the folder was opened
            return target
        if name not in self.files:
            raise FileNotFoundError(
                f"{self.url}/{name}: found no such file in the manifest; use another dataset"
            )
        entry = self.files[name]
        if _is_whole(target, entry):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not _is_whole(target, entry):
                self._fetch(entry, target)
        return target

    def _fetch(self, entry: FileEntry, target: Path) -> None:
        import shutil

        if shutil.disk_usage(self.dir).free < entry.bytes + SPARE_BYTES:
            raise OSError(
                f"{self.dir}: found less free disk than {self.url}/{entry.path} needs "
                f"({entry.bytes:,} bytes); free some, or set {CACHE_VARIABLE} to another folder"
            )
        source, remote = _open_url(f"{self.url}/{entry.path}")
        temporary = target.with_name(target.name + ".tmp")
        problem = ""
        for attempt in range(ATTEMPTS):
            try:
                source.get_file(remote, str(temporary))
                if file_checksum(temporary) == entry.xxh128:
                    with temporary.open("rb") as file:
                        os.fsync(file.fileno())  # or a power cut leaves its size without its bytes
                    temporary.replace(target)
                    return
                problem = "its checksum is not the manifest's"
            except Exception as error:  # every protocol raises its own
                problem = f"{type(error).__name__}: {error}"
            temporary.unlink(missing_ok=True)
            time.sleep(0.5 * 2**attempt)
        raise OSError(f"{self.url}/{entry.path}: not fetched in {ATTEMPTS} attempts ({problem})")


def _is_whole(copy: Path, entry: FileEntry) -> bool:
    return copy.is_file() and copy.stat().st_size == entry.bytes


def open_folder(dataset_dir: Path | str) -> tuple[Folder, Manifest]:
    """A dataset folder and its manifest.

    Args:
        dataset_dir: a local folder, or a URL that fsspec knows (s3://, gs://, https://, …). The
            cache of URLs lies in $TRIPTYCH_CACHE, or ~/.cache/triptych.
    """
    from filelock import FileLock

    url = url_of(dataset_dir)
    if url is not None and HIDDEN in url:
        raise ValueError(
            f"{url}: is from a saved config, and credentials are never saved; give dataset_dir "
            "again, or leave them to the environment variables of the store"
        )
    if url is None:
        return Folder(Path(dataset_dir)), Manifest.load(Path(dataset_dir))
    source, remote = _open_url(f"{url}/{MANIFEST_FILE}")
    try:
        payload: bytes = source.cat_file(remote)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{url}: found no {MANIFEST_FILE}; expected a complete dataset folder, correct the URL"
        ) from error
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "triptych"
    # A dataset made anew has another manifest, and so a cache of its own.
    local = Path(root) / "datasets" / hashlib.sha256(url.encode() + payload).hexdigest()[:24]
    local.mkdir(parents=True, exist_ok=True)
    with FileLock(local / f"{MANIFEST_FILE}.lock"):
        if not (local / MANIFEST_FILE).is_file():
            replace_file(local / MANIFEST_FILE, payload)
    manifest = Manifest.load(local)
    return CachedFolder(local, url, {entry.path: entry for entry in manifest.files}), manifest


def url_of(dataset_dir: Path | str) -> str | None:
    """The URL, also one that was made a `Path` and lost a slash; None for a local folder."""
    found = re.fullmatch(r"([a-z][a-z0-9+]+):/+(.*?)/*", str(dataset_dir))
    if found is None:
        return None
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


def _open_url(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        source, remote = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url}: fsspec cannot open it ({error}); install what it names, such as s3fs"
        ) from error
    return source, remote
