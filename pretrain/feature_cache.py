"""Backbone features of every item, computed once: the quick way to train on frozen towers.

features_dir/
  features.json          which towers, of which dataset
  <modality>.npy         [N, F] float16 or float32, zeros where absent
  <modality>.mask.npy    [N] bool
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from data_prep.records import replace_file
from pretrain.batch import ItemBatch
from pretrain.towers import TowerConfig

INDEX_FILE = "features.json"
HOW_IT_IS_TUNED = ("train", "top_k", "lora_rank", "lora_alpha", "checkpointing")


def content_fingerprint(dataset: Dataset) -> str:
    """Fingerprint of the items' tars: the same content gives the same."""
    entries = [
        f"{file.path}:{file.xxh128}"
        for file in dataset.manifest.files
        if file.path.startswith("items/") and file.path.endswith(".tar")
    ]
    return hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest()


def tower_fingerprint(tower: TowerConfig) -> dict[str, object]:
    """What decides a frozen tower's features."""
    entry = dataclasses.asdict(tower)
    return {key: value for key, value in entry.items() if key not in HOW_IT_IS_TUNED}


def saved_architectures(features_dir: Path) -> dict[str, dict[str, Any]]:
    """What `Backbone.architecture()` said of the towers whose features these are."""
    index: dict[str, dict[str, Any]] = json.loads((features_dir / INDEX_FILE).read_text())
    return index["architectures"]


def saved_digests(features_dir: Path) -> dict[str, str] | None:
    """Modality → what its features are of, see `feature_parts.py`; None without features there."""
    path = features_dir / INDEX_FILE
    if not path.is_file():
        return None
    digests: dict[str, str] | None = json.loads(path.read_text()).get("digests")
    return digests


@dataclass(frozen=True)
class FeatureCache:
    """Features in memory-mapped arrays."""

    features: dict[str, NDArray[np.floating[Any]]]
    masks: dict[str, NDArray[np.bool_]]

    @property
    def widths(self) -> dict[str, int]:
        """F of each modality."""
        return {name: int(array.shape[1]) for name, array in self.features.items()}

    def load(self, rows: NDArray[np.int64]) -> ItemBatch:
        """Features of these items."""
        inputs, presence = {}, {}
        for name, array in self.features.items():
            present = self.masks[name][rows]
            found = array[rows[present]].astype(np.float32)
            if not present.any():
                found = np.zeros((1, array.shape[1]), np.float32)
            inputs[name] = {"features": torch.from_numpy(found)}
            presence[name] = torch.from_numpy(present)
        return ItemBatch(rows_n=torch.from_numpy(rows), inputs=inputs, presence=presence)

    @classmethod
    def open(
        cls, features_dir: Path, *, dataset: Dataset, towers: Mapping[str, TowerConfig]
    ) -> FeatureCache:
        """Open the features of these towers on this dataset.

        Raises:
            ValueError: no features there, of another dataset, or of other towers; or no towers.
        """
        if not towers:
            raise ValueError(
                f"{features_dir}: found features for a model without towers, which reads none; "
                "take features_dir out"
            )
        again = "run python -m pretrain features again"
        path = features_dir / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"{features_dir}: no {INDEX_FILE} there; {again}")
        index = json.loads(path.read_text())
        if index["content"] != content_fingerprint(dataset):
            raise ValueError(f"{features_dir}: features are not of {dataset.dir}; {again}")
        features, masks = {}, {}
        for name, tower in towers.items():
            found, expected = index["towers"].get(name), tower_fingerprint(tower)
            if found is not None:  # of an older version, which knew fewer settings
                found = tower_fingerprint(TowerConfig(**found))
            if found != expected:
                raise ValueError(
                    f"{features_dir}: features of {name} are of tower {found}, expected "
                    f"{expected}; {again}"
                )
            if not tower.fixed_features:
                raise ValueError(
                    f"model.towers.{name}: train is {tower.train!r} and frames_pool "
                    f"{tower.frames_pool!r}, but data.features_dir gives cached features; set them "
                    "to frozen and mean, or take data.features_dir out"
                )
            features[name] = np.load(features_dir / f"{name}.npy", "r", allow_pickle=False)
            masks[name] = np.load(features_dir / f"{name}.mask.npy", allow_pickle=False)
        return cls(features, masks)

    @staticmethod
    def write_index(
        features_dir: Path,
        *,
        dataset: Dataset,
        towers: Mapping[str, TowerConfig],
        architectures: Mapping[str, dict[str, Any]],
        digests: Mapping[str, str],
    ) -> None:
        """Write features.json, last of all."""
        index = {
            "architectures": dict(architectures),
            "digests": dict(digests),
            "content": content_fingerprint(dataset),
            "towers": {name: tower_fingerprint(tower) for name, tower in towers.items()},
        }
        replace_file(features_dir / INDEX_FILE, json.dumps(index, indent=2).encode())
