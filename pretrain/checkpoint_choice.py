"""Which checkpoint a run goes on from, which a release is made from, and which are deleted."""

from __future__ import annotations

import logging
from pathlib import Path

from pretrain.checkpoint_files import (
    DamagedCheckpoint,
    check_files,
    folder_of,
    read_manifest,
    remove,
    set_aside,
    step_folders,
    step_of,
)
from pretrain.checkpoint_policy import (
    KeepConfig,
    Saved,
    kept_steps,
    ranked,
    read_validation,
    validation_file,
)
from pretrain.collectives import gather_objects, rank, world_size

log = logging.getLogger(__name__)

OLD_NAMES = ("last.ckpt", "best-*.ckpt")
"""Of versions that did not verify checkpoints."""


def has_checkpoints(checkpoints: Path) -> bool:
    """Whether a run has left any here, whole or damaged.

    Raises:
        ValueError: they are of an earlier version.
    """
    if step_folders(checkpoints):
        return True
    for pattern in OLD_NAMES:
        for path in checkpoints.glob(pattern):
            raise ValueError(
                f"{path}: is of an earlier version, expected folders step-N; choose another "
                "run.dir, or delete the checkpoints to start anew"
            )
    return False


def choose_checkpoint(checkpoints: Path, *, layout: str) -> Path | None:
    """The newest that verifies, None where a run has none; a collective.

    Each rank reads its share of the files. Damaged ones are renamed once a whole one is found.

    Args:
        checkpoints: the run's folder of them.
        layout: `whole`, or `zero-1` to `zero-3`, of the run that begins.

    Raises:
        ValueError: every one is damaged, or the newest is of another layout.
    """
    names: list[str] = gather_objects([path.name for path in step_folders(checkpoints)])[0]
    damaged: dict[Path, str] = {}
    for folder in (checkpoints / name for name in names):
        fault = _fault(folder)
        if fault is None:
            _check_layout(folder, layout)
            if rank() == 0:
                _put_aside(damaged)
            gather_objects(None)  # nobody goes on while folders are being renamed
            return folder
        damaged[folder] = fault
    if damaged:
        faults = "; ".join(f"{folder.name}: {fault}" for folder, fault in damaged.items())
        raise ValueError(
            f"{checkpoints}: no checkpoint is whole ({faults}); restore one from a backup, or "
            "delete the folder to start anew"
        )
    return None


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as all ranks together find; a collective."""
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest, names=sorted(manifest.files)[rank() :: world_size()])
        found = None
    except DamagedCheckpoint as error:
        found = str(error)
    faults: list[str | None] = gather_objects(found)
    return next((fault for fault in faults if fault is not None), None)


def _check_layout(folder: Path, layout: str) -> None:
    found = read_manifest(folder).layout
    if found != layout:
        raise ValueError(
            f"{folder}: was saved under {found}, this run is {layout} (whole: one process or ddp); "
            "go on with the same trainer.strategy, or choose another run.dir"
        )


def _put_aside(damaged: dict[Path, str]) -> None:
    for folder, fault in damaged.items():
        log.error("%s: DAMAGED, %s; renamed to %s", folder, fault, set_aside(folder).name)


def find_checkpoint(run_dir: Path, *, which: str) -> Path:
    """The `best` checkpoint by validation or the `last` one; damaged ones are passed over.

    Raises:
        ValueError: the run has none.
    """
    if which not in ("best", "last"):
        raise ValueError(f"checkpoint: found {which!r}, expected best or last")
    checkpoints = run_dir / "checkpoints"
    has_checkpoints(checkpoints)
    folders = step_folders(checkpoints)
    if which == "best":
        scored = [Saved(step_of(one), 0.0, score) for one, score in _scores(checkpoints).items()]
        folders = [folder_of(checkpoints, one.step) for one in ranked(scored)]
    for folder in folders:
        try:
            check_files(folder, read_manifest(folder))
            return folder
        except DamagedCheckpoint as error:
            log.error("%s: DAMAGED, %s; looking at the one before", folder, error)
    what = "checkpoint that was validated" if which == "best" else "whole checkpoint"
    raise ValueError(f"{checkpoints}: no {what}; train with python -m pretrain fit first")


def saved_in(checkpoints: Path) -> list[Saved]:
    """Checkpoints whose files are there, newest first; their content is not read."""
    saved = []
    for folder, score in _scores(checkpoints).items():
        try:
            saved.append(Saved(step_of(folder), read_manifest(folder).written, score))
        except DamagedCheckpoint:
            continue
    return saved


def delete_old(checkpoints: Path, keep: KeepConfig) -> None:
    """Delete what the policy does not keep."""
    saved = saved_in(checkpoints)
    kept = kept_steps(saved, keep)
    for folder in (folder_of(checkpoints, one.step) for one in saved if one.step not in kept):
        try:
            remove(folder)
            validation_file(folder).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: not deleted: %s", folder, error)


def _scores(checkpoints: Path) -> dict[Path, float | None]:
    """Checkpoint, newest first → the metric that the newest note names, where it has one."""
    notes = {folder: read_validation(folder) for folder in step_folders(checkpoints)}
    monitor = next((note.monitor for note in notes.values() if note is not None), None)
    return {
        folder: None if note is None or monitor is None else note.metrics.get(monitor)
        for folder, note in notes.items()
    }
