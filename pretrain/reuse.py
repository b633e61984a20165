"""What a run takes over: a start, a teacher, a space to stay comparable with, vectors of ids.

Each is refused where it has seen the validation time, and recorded in the release that comes of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset import Dataset
from pretrain.collaborative import CollaborativeConfig
from pretrain.known_vectors import KnownVectors
from pretrain.look_ahead import refuse_look_ahead
from pretrain.model import ModelConfig
from pretrain.release import file_sha256
from pretrain.release_config import WEIGHTS_FILE
from pretrain.user_features import UserColumn
from pretrain.warm_start import EarlierRelease

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReuseConfig:
    """Earlier releases, and vectors of a model of ids, that a run builds on."""

    warm_start: Path | None = None
    """Released checkpoint to start from: encoders, adapters with their input scales, temperatures,
    and id vectors by item id. New items start without an id vector, dropped ones are forgotten."""

    teacher: Path | None = None
    """Folder of python -m pretrain embed by a teacher release, for `loss.distil_weight`; best on
    this very dataset, else the items that it lacks take no part."""

    old_space: Path | None = None
    """The same by the release whose vectors new ones stay comparable with, for
    `loss.compatibility_weight`; of the same width."""

    collaborative: CollaborativeConfig | None = None
    """Vectors of a model of ids that content is pulled to, for `loss.collaborative_weight`, so that
    cold items land among those that users know."""

    allow_look_ahead: bool = False
    """Accept any of these although it has seen events of the validation or test time; the release
    that comes of it records what it has seen."""

    def open(self, dataset: Dataset, *, model: ModelConfig) -> Reused:
        """Read what is named.

        Raises:
            ValueError: not readable, of another architecture, or it looks ahead.
        """
        reused = Reused(
            earlier=None if self.warm_start is None else EarlierRelease.open(self.warm_start),
            teacher=None
            if self.teacher is None
            else KnownVectors.open(self.teacher, dataset=dataset),
            old=None
            if self.old_space is None
            else KnownVectors.open(self.old_space, dataset=dataset),
            collaborative=None
            if self.collaborative is None
            else KnownVectors.read(
                self.collaborative.path,
                column=self.collaborative.column,
                dataset=dataset,
                newest_event=self.collaborative.newest_event,
                fingerprint=file_sha256(self.collaborative.path),
            ),
        )
        for name, entry in reused.provenance().items():
            refuse_look_ahead(
                entry["newest_event"],
                dataset,
                source=f"model.reuse.{name} {getattr(self, name)}",
                allowed=self.allow_look_ahead,
                override="--model.reuse.allow_look_ahead true, which the release records",
            )
        if reused.earlier is not None:
            reused.earlier.check_settings(model)
        if reused.old is not None and reused.old.width != model.width:
            raise ValueError(
                f"model.reuse.old_space {self.old_space}: found vectors of width "
                f"{reused.old.width}, expected model.encoders.width {model.width}; vectors of two "
                "widths cannot be compared, use model.reuse.teacher instead"
            )
        return reused


@dataclass(frozen=True)
class Reused:
    """What was read."""

    earlier: EarlierRelease | None = None
    teacher: KnownVectors | None = None
    old: KnownVectors | None = None
    collaborative: KnownVectors | None = None

    @property
    def user_columns(self) -> tuple[UserColumn, ...]:
        """User features whose vocabularies and scales are kept."""
        return () if self.earlier is None else self.earlier.config.user_columns

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Setting → SHA-256 of the release's weights, or of the file, and the newest event seen.

        Of a warm start also the towers that are no longer off-the-shelf, see `embed.py`.
        """
        found: dict[str, dict[str, Any]] = {}
        if self.earlier is not None:
            found["warm_start"] = {
                "release_fingerprint": file_sha256(self.earlier.folder / WEIGHTS_FILE),
                "newest_event": self.earlier.config.newest_event,
                "tuned_towers": sorted(self.earlier.config.tuned_towers),
            }
        for name, known in (("teacher", self.teacher), ("old_space", self.old)):
            if known is not None:
                found[name] = {
                    "release_fingerprint": known.fingerprint,
                    "newest_event": known.newest_event,
                }
        if self.collaborative is not None:
            found["collaborative"] = {
                "file_sha256": self.collaborative.fingerprint,
                "newest_event": self.collaborative.newest_event,
            }
        return found
