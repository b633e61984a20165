"""Training checkpoints on disk: folders that are whole, or are not there.

run.dir/checkpoints/
  step-120/                   everything as it was after optimizer step 120
    checkpoint.json           step, ranks, strategy, size and hash of every file; written last
    state.ckpt                of one process or DDP
    zero/*.pt                 of DeepSpeed, the files of every rank
  step-120.validation.json    what validation found at that step
  step-140.0a1b2c3d.partial/  being written, or left by a kill; removed at the next start
  step-100.damaged-1/         did not verify; yours to look at and delete
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash

MANIFEST_FILE, STATE_FILE, ZERO_FOLDER = "checkpoint.json", "state.ckpt", "zero"
PARTIAL, REMOVED, DAMAGED = ".partial", ".removed", ".damaged"
VALIDATION = ".validation.json"
VERSION = 1
READ_BYTES = 1 << 20
DEEPSPEED_CLASSES = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
)
"""All that a checkpoint may hold beside tensors and plain data."""


class DamagedCheckpoint(ValueError):
    """A checkpoint is not as it was written."""


@dataclass(frozen=True)
class FileSum:
    """What a file must be."""

    size: int
    """In bytes."""

    xxh3: str
    """XXH3, 128 bits, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`checkpoint.json`."""

    step: int
    """Optimizer steps taken."""

    epoch: int
    """The epoch of the last batch, from 0."""

    batches: int
    """Batches done in that epoch."""

    epoch_done: bool
    """Whether that was the epoch's last batch."""

    ranks: int
    """Processes that wrote it."""

    layout: str
    """`whole`, or `zero-1` to `zero-3`."""

    written: float
    """Unix time in seconds."""

    versions: dict[str, str]
    """Of the software that wrote it."""

    files: dict[str, FileSum]
    """By path in the folder."""

    def to_json(self) -> str:
        """With a hash of itself, so that an altered one is known."""
        content = {"version": VERSION, **asdict(self)}
        return json.dumps({**content, "xxh3": hash_of(content)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The opposite of `to_json`.

        Raises:
            DamagedCheckpoint: it is not what `to_json` wrote, or of another version.
        """
        try:
            content = json.loads(text)
            stated, version = content.pop("xxh3"), content.pop("version")
            if version == VERSION and stated == hash_of({"version": version, **content}):
                files = {name: FileSum(**one) for name, one in content.pop("files").items()}
                return cls(**content, files=files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpoint(f"{MANIFEST_FILE} is not readable: {error}") from error
        if version != VERSION:
            raise DamagedCheckpoint(f"{MANIFEST_FILE} is of version {version}, expected {VERSION}")
        raise DamagedCheckpoint(f"{MANIFEST_FILE} was altered: its hash is not the one it states")


def hash_of(content: dict[str, Any]) -> str:
    """XXH3 of JSON that does not depend on the order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


# ---------------------------------------------------------------------- names
def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step-{step}"


def step_of(folder: Path) -> int:
    """The opposite of `folder_of`."""
    return int(folder.name.removeprefix("step-"))


def step_folders(checkpoints: Path) -> list[Path]:
    """Checkpoints that were whole once, newest first."""
    found = [
        path
        for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
        if path.is_dir() and re.fullmatch(r"step-(0|[1-9]\d{0,17})", path.name)
    ]
    return sorted(found, key=step_of, reverse=True)


# ---------------------------------------------------------------------- writing
class _Sink:
    """Takes what torch writes and keeps the first error to itself.

    An exception inside torch's zip writer is lost in an assertion of its own, and the next write
    may end the interpreter.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size = file, 0
        self.hash = xxhash.xxh3_128()
        self.error: OSError | None = None

    def write(self, payload: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(payload)
            except OSError as error:
                self.error = error
        self.hash.update(payload)
        self.size += len(payload)
        return len(payload)

    def flush(self) -> None:
        """Done once, at the end."""


def save_state(state: Any, path: Path) -> FileSum:  # noqa: ANN401 - whatever torch.save takes
    """Write, flush to the disk, read again and compare.

    Raises:
        OSError: the disk is full, a quota is used up, or it does not hold what was written.
        ValueError: it could not be loaded again, as it holds objects of some class.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=READ_BYTES) as file:
        sink = _Sink(file)
        torch.save(state, cast(IO[bytes], sink))
        if sink.error is not None:
            raise sink.error
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # else it would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    written = FileSum(sink.size, sink.hash.hexdigest())
    found = sum_of(path)
    if found != written:
        raise OSError(f"{path}: wrote {written} and read {found}")
    classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if more := sorted({*classes} - {*DEEPSPEED_CLASSES}):
        raise ValueError(f"it holds {', '.join(more)}, expected tensors and plain data alone")
    return written


def sum_of(path: Path) -> FileSum:
    """Size and hash of a file."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while payload := file.read(READ_BYTES):
            found.update(payload)
        return FileSum(file.tell(), found.hexdigest())


def put_in_place(partial: Path, manifest: Manifest) -> Path:
    """Make a written folder the checkpoint of its step; every rank's files are on the disk.

    Raises:
        OSError: it could not; the folder stays partial.
    """
    with (partial / MANIFEST_FILE).open("w") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    for folder in {(partial / name).parent for name in manifest.files} | {partial}:
        _sync_folder(folder)
    whole = folder_of(partial.parent, manifest.step)
    if whole.exists():  # of a step that this life takes for the second time
        remove(whole)
    partial.rename(whole)
    _sync_folder(whole.parent)
    return whole


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- reading
def read_manifest(folder: Path) -> Manifest:
    """What a checkpoint says of itself, after a look at names and sizes.

    Raises:
        DamagedCheckpoint: a file is missing, cut short or too many, or the manifest was altered.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text())
        if folder_of(folder.parent, manifest.step) != folder:
            raise DamagedCheckpoint(f"{MANIFEST_FILE} is of step {manifest.step}")
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in folder.rglob("*")
            if not path.is_dir() and path != folder / MANIFEST_FILE
        }
    except OSError as error:
        raise DamagedCheckpoint(f"cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DamagedCheckpoint(f"{MANIFEST_FILE} is not readable: {error}") from error
    for name in sorted(sizes.keys() ^ manifest.files.keys()):
        raise DamagedCheckpoint(
            f"{name} is missing" if name in manifest.files else f"{name} does not belong there"
        )
    for name, size in sizes.items():
        if size != manifest.files[name].size:
            raise DamagedCheckpoint(
                f"{name} has {size} bytes, expected {manifest.files[name].size}"
            )
    return manifest


def check_files(folder: Path, manifest: Manifest, *, names: Iterable[str] | None = None) -> None:
    """Read the files, all or those named, and compare their hashes.

    Raises:
        DamagedCheckpoint: one is not as it was written.
    """
    for name in manifest.files if names is None else names:
        try:
            found = sum_of(folder / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{name} cannot be read: {error}") from error
        if found != manifest.files[name]:
            raise DamagedCheckpoint(f"{name} was altered: its hash is {found.xxh3}")


@contextmanager
def no_code(path: Path) -> Iterator[None]:
    """Say in our words that a file is refused.

    Raises:
        DamagedCheckpoint: what was loaded holds more than tensors and plain data.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(
            f"{path}: holds more than tensors and plain data, and is not loaded; it was not "
            "written by python -m pretrain fit"
        ) from error


# ---------------------------------------------------------------------- removing
def remove(folder: Path) -> None:
    """Remove a checkpoint; killed half way, it leaves nothing that looks like one."""
    gone = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint; nothing reads or removes it from then on."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}{DAMAGED}-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def remove_left_overs(checkpoints: Path) -> None:
    """Remove what a run that was killed left half written or half removed."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if path.suffix in (PARTIAL, REMOVED, ".tmp"):
            shutil.rmtree(path, ignore_errors=True)  # a life that was left over may still write
        elif path.name.endswith(VALIDATION):
            if not path.with_name(path.name.removesuffix(VALIDATION)).exists():
                path.unlink()
