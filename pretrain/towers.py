"""Backbones by name: content of one modality → features of one width.

One file a library stands behind `build_backbone`: `tower_open_clip.py`, `tower_transformers.py`,
`tower_efficientnet.py`, `tower_sound.py`; `tower_frames.py` makes a tower of several pictures from
one of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pretrain.backbone import Backbone, GivenVectors, Library, TowerConfig
from pretrain.named_weights import load_exactly
from pretrain.tower_efficientnet import build_efficientnet_lite
from pretrain.tower_frames import FramesBackbone
from pretrain.tower_open_clip import build_open_clip
from pretrain.tower_sound import ConvSound
from pretrain.tower_transformers import build_transformers
from pretrain.tuning import tune

__all__ = ["Backbone", "GivenVectors", "Library", "TowerConfig", "build_backbone"]

MODALITIES = {
    "open_clip": ("image", "text", "frames"),
    "transformers": ("image", "text", "frames", "sound"),
    "efficientnet_lite": ("image", "frames"),
    "conv": ("sound",),
}
"""What each library makes towers for."""


def build_backbone(
    modality: str,
    config: TowerConfig,
    *,
    given_width: int | None = None,
    saved: dict[str, Any] | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """Build the backbone of one modality.

    Args:
        modality: `image`, `text`, `frames`, `sound` or the name of given vectors.
        config: which one.
        given_width: width of the given vectors, from the dataset's manifest.
        saved: what `architecture()` said when a release was written; weights are then left random,
            to be loaded by the caller, nothing is looked up by name, and there are no adapters.
        start: weights of an earlier release in the place of the config's, by the backbone's own
            names; they are loaded before adapters are added.

    Raises:
        ValueError: an unknown model, a package that is not installed, a modality that the library
            has no tower for, weights
            that do not fit.
    """
    if config.library == "given":
        width = saved["width"] if saved else given_width
        if width is None:
            raise ValueError(
                f"tower {modality}: library `given` needs vectors named {modality!r} in the "
                "dataset; map them under items.vectors and run python -m data_prep shard again"
            )
        return GivenVectors(width)
    if modality not in MODALITIES[config.library]:
        raise ValueError(
            f"tower {modality}: {config.library} makes towers for "
            f"{', '.join(MODALITIES[config.library])} only; choose another library"
        )
    if modality == "frames":
        picture = _build("image", config, saved)
        backbone: Backbone = FramesBackbone(picture, pool=config.frames_pool)
    else:
        backbone = _build(modality, config, saved)
    if start is not None:
        load_exactly(backbone, start, source=f"earlier release, tower {modality}")
    if saved is None:
        tune(backbone, config)
        if isinstance(backbone, FramesBackbone):
            backbone.pool.requires_grad_(True)
    elif config.train == "frozen":
        backbone.requires_grad_(False)
    return backbone


def _build(modality: str, config: TowerConfig, saved: dict[str, Any] | None) -> Backbone:
    if config.library == "open_clip":
        return build_open_clip(modality, config, saved)
    if config.library == "transformers":
        return build_transformers(modality, config, saved)
    if config.library == "conv":
        return ConvSound(config)
    return build_efficientnet_lite(config, saved)
