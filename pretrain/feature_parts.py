"""Features of some items at a time: files that many processes write and one joins.

features_dir/parts/<modality>-<digest>/<part>.safetensors   features [rows, F], mask [rows]

A part is a range of items. It is written under a temporary name and renamed, so one that is there
is whole, and a run that was stopped goes on with the parts that are missing. The digest says of
which content and which weights the features are: parts of anything else are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from data_prep.dataset import Dataset
from data_prep.records import replace_file
from pretrain.backbone import Backbone, TowerConfig
from pretrain.feature_cache import content_fingerprint, tower_fingerprint

PART_ROWS = 1024
PARTS_DIR = "parts"


@dataclass(frozen=True)
class Share:
    """Which of several processes this is; they need not know each other."""

    number: int
    of: int

    @classmethod
    def of_launcher(cls) -> Share:
        """As torchrun or srun said; else the only one.

        A batch script outside srun has SLURM_PROCID too, and is alone all the same.
        """
        found = os.environ
        for number, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if number in found and count in found:
                return cls(int(found[number]), int(found[count]))
        return cls(0, 1)

    def takes(self, part: int) -> bool:
        """Whether a part is this process's."""
        return part % self.of == self.number


def features_digest(dataset: Dataset, tower: TowerConfig, backbone: Backbone) -> str:
    """What decides the features: content, settings of the tower, architecture and weights."""
    digest = hashlib.sha256(content_fingerprint(dataset).encode())
    about = [tower_fingerprint(tower), backbone.architecture()]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureParts:
    """The parts of one modality."""

    folder: Path
    num_items: int
    width: int

    def __len__(self) -> int:
        return -(-self.num_items // PART_ROWS)

    def rows(self, part: int) -> range:
        """Items of a part."""
        return range(part * PART_ROWS, min((part + 1) * PART_ROWS, self.num_items))

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"{part:06d}.safetensors"

    def missing(self) -> list[int]:
        """Parts that are not there yet."""
        return [part for part in range(len(self)) if not self.path(part).is_file()]

    def write(
        self, part: int, features: NDArray[np.floating[Any]], mask: NDArray[np.bool_]
    ) -> None:
        """Keep a finished part."""
        replace_file(self.path(part), save({"features": features, "mask": mask}))

    def join(self, out_dir: Path, *, name: str) -> int:
        """Write `<name>.npy` and its mask from all parts; how many items have the modality.

        It is as precise as the most precise of them.
        """
        temporary = out_dir / f"{name}.npy.tmp"
        array = np.lib.format.open_memmap(
            temporary,
            mode="w+",
            dtype=np.float32 if "F32" in map(self._dtype, range(len(self))) else np.float16,
            shape=(self.num_items, self.width),
        )
        mask = np.zeros(self.num_items, bool)
        for part in range(len(self)):
            found, rows = load_file(self.path(part)), self.rows(part)
            array[rows.start : rows.stop] = found["features"]
            mask[rows.start : rows.stop] = found["mask"]
        array.flush()
        temporary.replace(out_dir / f"{name}.npy")
        mask_file = out_dir / f"{name}.mask.npy.tmp"
        with mask_file.open("wb") as file:
            np.save(file, mask)
        mask_file.replace(out_dir / f"{name}.mask.npy")
        return int(mask.sum())

    def _dtype(self, part: int) -> str:
        """As safetensors calls it, from the header alone."""
        with safe_open(self.path(part), "numpy") as file:
            name: str = file.get_slice("features").get_dtype()
        return name
