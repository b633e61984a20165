"""`python -m pretrain features`: the features of frozen towers, computed once."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from data_prep.dataset import open_dataset
from pretrain.data import DataConfig
from pretrain.export import BACKBONES_FILE
from pretrain.feature_cache import INDEX_FILE, FeatureCache
from pretrain.item_loader import ItemLoader, preprocessors_of, vector_widths_of
from pretrain.model import ModelConfig
from pretrain.towers import build_backbone

log = logging.getLogger(__name__)


BATCH_SIZE = 64


@torch.inference_mode()
def compute_features(model: ModelConfig, *, config: DataConfig) -> None:
    """Run every tower over every item and keep the features (float16) for quick training.

    Args:
        model: the architecture; every tower must be frozen.
        config: `dataset_dir` is read, `features_dir` is written, features.json last; `seed`
            decides towers whose weights are random.
    """
    dataset_dir, out_dir = config.dataset_dir, config.features_dir
    if out_dir is None:
        raise ValueError("data.config.features_dir is not set: there the features would go")
    tuned = [name for name, tower in model.towers.items() if tower.train != "frozen"]
    if tuned:
        raise ValueError(f"towers {tuned} are tuned: only frozen towers have fixed features")
    dataset = open_dataset(dataset_dir)
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    torch.set_num_threads(threads)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / INDEX_FILE).unlink(missing_ok=True)
    given, preprocessors = vector_widths_of(dataset), preprocessors_of(dataset, model.towers)
    weights: dict[str, Tensor] = {}
    architectures: dict[str, dict[str, Any]] = {}
    for name, tower in model.towers.items():
        torch.manual_seed(config.seed)
        backbone = build_backbone(name, tower, given_width=given.get(name)).eval().to(where)
        architectures[name] = backbone.architecture()
        weights |= {
            f"item_encoder.backbones.{name}.{key}": value.contiguous().clone().cpu()
            for key, value in backbone.state_dict().items()
        }
        items = ItemLoader(dataset, preprocessors={name: preprocessors[name]})
        array = np.lib.format.open_memmap(
            out_dir / f"{name}.npy.tmp",
            mode="w+",
            dtype=np.float16,
            shape=(dataset.num_items, backbone.width),
        )
        mask = np.zeros(dataset.num_items, bool)
        starts = range(0, dataset.num_items, BATCH_SIZE)
        for start in track(starts, description=f"features of {name}"):
            rows = np.arange(start, min(start + BATCH_SIZE, dataset.num_items))
            batch = items.load(rows)
            present = batch.presence[name].numpy()
            if present.any():
                inputs = {key: value.to(where) for key, value in batch.inputs[name].items()}
                array[rows[present]] = backbone(**inputs).half().cpu().numpy()
            mask[rows] = present
        array.flush()
        (out_dir / f"{name}.npy.tmp").replace(out_dir / f"{name}.npy")
        np.save(out_dir / f"{name}.mask.npy", mask)
        log.info("%s: %d of %d items, width %d", name, mask.sum(), len(mask), backbone.width)
    save_file(weights, out_dir / BACKBONES_FILE)
    FeatureCache.write_index(
        out_dir, dataset=dataset, towers=model.towers, architectures=architectures
    )
