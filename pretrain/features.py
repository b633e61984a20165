"""`python -m pretrain features`: the features of frozen towers, computed once.

Started many times at once (torchrun, srun) every process takes its part of the
items; whoever finishes last joins the parts. Started again after a stop, it does what is missing.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from data_prep.dataset import Dataset, open_dataset
from pretrain.backbone import Backbone
from pretrain.data_config import DataConfig
from pretrain.export import BACKBONES_FILE
from pretrain.feature_cache import INDEX_FILE, FeatureCache, saved_digests
from pretrain.feature_parts import PARTS_DIR, FeatureParts, Share, features_digest
from pretrain.item_loader import ItemLoader, preprocessors_of, vector_widths_of
from pretrain.model import ModelConfig
from pretrain.towers import build_backbone
from pretrain.warm_start import EarlierRelease

log = logging.getLogger(__name__)


BATCH_SIZE = 64


@torch.inference_mode()
def compute_features(
    model: ModelConfig, *, config: DataConfig, earlier: EarlierRelease | None = None
) -> None:
    """Run every tower over every item and keep the features for quick training.

    They are kept as float16, or as float32 where float16 would overflow (given vectors may).

    Args:
        model: the architecture; every tower must be frozen.
        config: `dataset_dir` is read, `features_dir` is written, features.json last; `seed`
            decides towers whose weights are random.
        earlier: a release whose towers are taken, whatever it trained of them.
    """
    dataset_dir, out_dir = config.dataset_dir, config.features_dir
    if out_dir is None:
        raise ValueError("data.config.features_dir is not set: there the features would go")
    if not model.towers:
        raise ValueError(
            "model.encoders.towers is empty, so that there are no features; go on with "
            "python -m pretrain fit"
        )
    tuned = [name for name, tower in model.towers.items() if not tower.fixed_features]
    if tuned:
        raise ValueError(
            f"towers {tuned} are tuned: only frozen towers, and frames pooled by their mean, have "
            "fixed features"
        )
    dataset = open_dataset(dataset_dir)
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    torch.set_num_threads(threads)
    backbones = _build(model, dataset, seed=config.seed, earlier=earlier)
    digests = {
        name: features_digest(dataset, model.towers[name], one) for name, one in backbones.items()
    }
    parts = {
        name: FeatureParts(
            out_dir / PARTS_DIR / f"{name}-{digests[name][:16]}", dataset.num_items, one.width
        )
        for name, one in backbones.items()
    }
    if saved_digests(out_dir) == digests:
        log.info("%s: the features of these towers and items are there", out_dir)
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    share = Share.of_launcher()
    preprocessors = preprocessors_of(dataset, model.towers)
    for name, backbone in backbones.items():
        items = ItemLoader(dataset, preprocessors={name: preprocessors[name]})
        mine = [part for part in parts[name].missing() if share.takes(part)]
        for part in track(mine, description=f"features of {name}"):
            _compute_part(name, part, backbone=backbone.to(_device()), items=items, out=parts[name])
    with FileLock(out_dir / ".lock"):
        if saved_digests(out_dir) == digests:  # another process was quicker
            shutil.rmtree(out_dir / PARTS_DIR, ignore_errors=True)
            return
        lacking = {name: len(missing) for name, one in parts.items() if (missing := one.missing())}
        if lacking:
            log.info("%s: parts that other processes compute: %s", out_dir, lacking)
            return
        _join(out_dir, parts, dataset=dataset, model=model, backbones=backbones, digests=digests)


def _build(
    model: ModelConfig, dataset: Dataset, *, seed: int, earlier: EarlierRelease | None
) -> dict[str, Backbone]:
    """Every tower, the same on every process."""
    given = vector_widths_of(dataset)
    backbones = {}
    for name, tower in model.towers.items():
        torch.manual_seed(seed)
        start = None if earlier is None else earlier.tower_weights(name)
        backbones[name] = build_backbone(
            name, tower, given_width=given.get(name), start=start
        ).eval()
    return backbones


def _device() -> torch.device:
    """This process's GPU of the node, if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def _compute_part(
    name: str, part: int, *, backbone: Backbone, items: ItemLoader, out: FeatureParts
) -> None:
    """Run one tower over one part's items.

    Raises:
        ValueError: the tower says of an item what is not finite.
    """
    rows_of_part = out.rows(part)
    features = np.zeros((len(rows_of_part), out.width), np.float32)
    mask = np.zeros(len(rows_of_part), bool)
    for start in range(0, len(rows_of_part), BATCH_SIZE):
        rows = np.asarray(rows_of_part[start : start + BATCH_SIZE])
        batch = items.load(rows)
        present = batch.presence[name].numpy()
        places = np.arange(start, start + len(rows))
        if present.any():
            inputs = {key: value.to(_device()) for key, value in batch.inputs[name].items()}
            features[places[present]] = backbone(**inputs).float().cpu().numpy()
        mask[places] = present
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"features of {name}: found numbers that are not finite for item row "
            f"{rows_of_part[int(finite.argmin())]}, expected finite ones; look at the item's "
            "content and at the tower's weights"
        )
    fits = np.abs(features).max() <= np.finfo(np.float16).max
    out.write(part, features.astype(np.float16) if fits else features, mask)


def _join(
    out_dir: Path,
    parts: dict[str, FeatureParts],
    *,
    dataset: Dataset,
    model: ModelConfig,
    backbones: dict[str, Backbone],
    digests: dict[str, str],
) -> None:
    """All parts → the cache, features.json last."""
    (out_dir / INDEX_FILE).unlink(missing_ok=True)
    weights: dict[str, Tensor] = {}
    for name, backbone in backbones.items():
        count = parts[name].join(out_dir, name=name)
        log.info("%s: %d of %d items, width %d", name, count, dataset.num_items, backbone.width)
        weights |= {
            f"item_encoder.backbones.{name}.{key}": value.contiguous().clone().cpu()
            for key, value in backbone.state_dict().items()
        }
    temporary = out_dir / (BACKBONES_FILE + ".tmp")
    save_file(weights, temporary)
    temporary.replace(out_dir / BACKBONES_FILE)
    FeatureCache.write_index(
        out_dir,
        dataset=dataset,
        towers=model.towers,
        architectures={name: one.architecture() for name, one in backbones.items()},
        digests=digests,
    )
    shutil.rmtree(out_dir / PARTS_DIR)
