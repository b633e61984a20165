"""Going on from an older release, with items and users that it did not know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.export import BACKBONES_FILE
from pretrain.feature_cache import tower_fingerprint
from pretrain.id_map import rows_of_ids
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.named_weights import load_exactly
from pretrain.release import ReleaseFiles
from pretrain.release_config import ReleaseConfig

BACKBONES = "item_encoder.backbones."
IDS = "ids.weight"
USER_COLUMNS = "user_encoder.features.columns."
FREE_SETTINGS = {"towers", "user", "width", "temperature"}
"""Settings of the encoders that are compared apart, show in a shape, or only start a training."""
FREE_TOWER_SETTINGS = {"name", "weights"}
"""Names may be paths, and weights are those of the release."""


@dataclass(frozen=True)
class EarlierRelease:
    """A released checkpoint as a start."""

    folder: Path
    config: ReleaseConfig
    item_ids: pa.Array
    weights: dict[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> EarlierRelease:
        """Read a released checkpoint.

        Raises:
            ValueError: not a release, or of another version.
        """
        files = ReleaseFiles.read(folder)
        return cls(folder, files.config, files.item_ids, files.weights)

    def tower_weights(self, modality: str) -> dict[str, Tensor]:
        """Plain weights of one backbone (adapters are merged in a release), by its own names."""
        prefix = f"{BACKBONES}{modality}."
        return {
            name.removeprefix(prefix): value
            for name, value in self.weights.items()
            if name.startswith(prefix)
        }

    def check_settings(self, model: ModelConfig) -> None:
        """Refuse encoders that would read these weights in another way, whatever their shapes.

        Raises:
            ValueError: it names the setting and both values.
        """
        theirs, ours = _meaning(self.config.model), _meaning(model)
        for name in [*ours, *theirs]:
            if theirs.get(name) != ours.get(name):
                raise ValueError(
                    f"{self.folder}: model.encoders.{name}: found {theirs.get(name)!r} there, "
                    f"expected {ours.get(name)!r} as in this run; set it as in its config.json, or "
                    "take model.reuse.warm_start out"
                )

    def load_into(
        self, model: TwoSpaceModel, *, item_ids: pa.Array, features_dir: Path | None
    ) -> int:
        """Put all but the backbones into a new model; the backbones had theirs when they were made.

        Id rows are matched by item id: new items keep the vector they start with, dropped ones are
        forgotten. Categories of user features that are new keep their random start.

        Args:
            model: of the new catalogue.
            item_ids: of the new catalogue, in its order.
            features_dir: cached features in the place of backbones; they must be of these ones.

        Returns:
            Items of the new catalogue that the release knew.

        Raises:
            ValueError: weights that do not fit, or features of other backbones.
        """
        if features_dir is not None:
            self._check_features(features_dir)
        known_N = torch.from_numpy(rows_of_ids(item_ids, known=self.item_ids))
        tables = {IDS: known_N} if model.ids is not None else {}
        for name, value in model.state_dict().items():
            # Categories known before come first (see `keep_earlier`); numbers have their 2 rows.
            if name.startswith(USER_COLUMNS) and name in self.weights:
                rows = torch.arange(len(value))
                tables[name] = torch.where(rows < len(self.weights[name]), rows, -1)
        load_exactly(model, self.weights, source=self.folder, rows=tables, left_out=BACKBONES)
        return int((known_N >= 0).sum())

    def _check_features(self, features_dir: Path) -> None:
        cached = load_file(features_dir / BACKBONES_FILE)
        for name, value in self.weights.items():
            if name.startswith(BACKBONES) and not (
                name in cached and torch.equal(cached[name], value.to(cached[name]))
            ):
                raise ValueError(
                    f"{features_dir}: features are of other weights than the release "
                    f"{self.folder} has ({name} differs); run python -m pretrain features with the "
                    "same model.reuse.warm_start into another folder, or take data.features_dir out"
                )


def _meaning(model: ModelConfig) -> dict[str, object]:
    """Settings that decide what weights mean; those of training alone are left out."""
    meaning: dict[str, object] = {
        name: value
        for name, value in dataclasses.asdict(model).items()
        if name not in FREE_SETTINGS and not name.endswith("dropout")
    }
    for name, value in dataclasses.asdict(model.user).items():
        if name != "dropout":
            meaning[f"user.{name}"] = value
    for tower, config in model.towers.items():
        for name, value in tower_fingerprint(config).items():
            if name not in FREE_TOWER_SETTINGS:
                meaning[f"towers.{tower}.{name}"] = value
    return meaning
