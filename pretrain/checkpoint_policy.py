"""Which checkpoints are kept, by their steps, times and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.records import replace_file
from pretrain.checkpoint_files import VALIDATION, hash_of, step_of


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which checkpoints are kept; the others are deleted once a newer one has been verified."""

    last: int = 2
    """The newest so many; with 1 there is none to fall back to should it be damaged."""

    best: int = 1
    """The best so many by `run.monitor`."""

    every_hours: float | None = None
    """One of every so many hours, for good; null keeps none for its age."""

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0:
            raise ValueError(
                f"run.keep: last must be at least 1 and best not negative, got {self.last} and "
                f"{self.best}"
            )
        if self.every_hours is not None and not self.every_hours > 0:
            raise ValueError(f"run.keep.every_hours must be positive, got {self.every_hours}")


@dataclass(frozen=True)
class Saved:
    """One checkpoint."""

    step: int
    written: float
    """Unix time in seconds."""

    score: float | None
    """What it is ranked by, higher is better; None where validation did not run."""


def kept_steps(saved: Sequence[Saved], keep: KeepConfig) -> set[int]:
    """Steps of those that stay."""
    ordered = sorted(saved, key=lambda one: one.step)
    kept = {one.step for one in ordered[-keep.last :]}
    kept |= {one.step for one in ranked(ordered)[: keep.best]}
    due = -math.inf
    for one in ordered if keep.every_hours is not None else ():
        if one.written >= due:
            kept.add(one.step)
            due = one.written + 3600 * (keep.every_hours or 0)
    return kept


def ranked(saved: Sequence[Saved]) -> list[Saved]:
    """Those with a score, the best first; of equal ones the earliest."""
    scored = [one for one in saved if one.score is not None and not math.isnan(one.score)]
    return sorted(scored, key=lambda one: (-(one.score or 0.0), one.step))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What validation found at a checkpoint."""

    monitor: str | None
    """The metric that the best are chosen by."""

    metrics: dict[str, float]


def validation_file(folder: Path) -> Path:
    """The note beside a checkpoint."""
    return folder.with_name(folder.name + VALIDATION)


def write_validation(folder: Path, found: Validation) -> None:
    """Leave a note beside a checkpoint.

    Raises:
        OSError: the disk is full, or the like.
    """
    content = {"step": step_of(folder), "monitor": found.monitor, "metrics": found.metrics}
    note = {**content, "xxh3": hash_of(content)}
    replace_file(validation_file(folder), json.dumps(note, indent=2).encode())


def read_validation(folder: Path) -> Validation | None:
    """The note; None where validation did not run or finish, or where the note is damaged."""
    try:
        content = json.loads(validation_file(folder).read_text())
        stated = content.pop("xxh3")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if stated != hash_of(content) or content["step"] != step_of(folder):
        return None
    return Validation(monitor=content["monitor"], metrics=content["metrics"])
