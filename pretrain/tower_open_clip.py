"""open_clip's models by name or by a JSON model config: picture and text halves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, TowerConfig


class OpenClipImage(Backbone):
    """The vision half of an open_clip model."""

    def __init__(self, model_config: dict[str, Any], tower: nn.Module) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.model_config = model_config
        self.tower = tower
        self.width = model_config["embed_dim"]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN)[:, None, None], False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD)[:, None, None], False)

    def forward(self, **inputs: Tensor) -> Tensor:
        """`pixels` [n, 3, H, W] uint8 → [n, F]."""
        pixels = inputs["pixels"].float() / 255
        features: Tensor = self.tower((pixels - self.mean) / self.std)
        return features

    def architecture(self) -> dict[str, Any]:
        """The open_clip model config, whole."""
        return {"model_config": self.model_config}

    def head_parameters(self) -> list[nn.Parameter]:
        """The projection, which open_clip registers before the blocks."""
        return [one for one in [getattr(self.tower, "proj", None)] if isinstance(one, nn.Parameter)]


class OpenClipText(Backbone):
    """The text half of an open_clip model."""

    def __init__(self, model_config: dict[str, Any], tower: nn.Module) -> None:
        super().__init__()
        self.model_config = model_config
        self.tower = tower
        self.width = model_config["embed_dim"]

    def forward(self, **inputs: Tensor) -> Tensor:
        """`tokens` [n, context_length] int64 → [n, F]."""
        features: Tensor = self.tower(inputs["tokens"])
        return features

    def architecture(self) -> dict[str, Any]:
        """The open_clip model config, whole."""
        return {"model_config": self.model_config}

    def head_parameters(self) -> list[nn.Parameter]:
        """The projection, which open_clip registers before the blocks."""
        return [
            one
            for one in [getattr(self.tower, "text_projection", None)]
            if isinstance(one, nn.Parameter)
        ]


def _open_clip_config(config: TowerConfig) -> dict[str, Any]:
    import open_clip

    if config.name.endswith(".json"):
        path = Path(config.name)
        if not path.is_file():
            raise ValueError(f"{path}: no such open_clip model config")
        model_config: dict[str, Any] = json.loads(path.read_text())
        return model_config
    found = open_clip.get_model_config(config.name)
    if found is None:
        raise ValueError(
            f"open_clip knows no model {config.name!r}; open_clip.list_models() prints the names, "
            "and a path to a JSON model config works too"
        )
    return dict(found)


def build_open_clip(modality: str, config: TowerConfig, saved: dict[str, Any] | None) -> Backbone:
    """One half of a model; `saved` as in `towers.build_backbone`."""
    _never_ask_to_run_code()
    from open_clip.model import _build_text_tower, _build_vision_tower

    model_config = saved["model_config"] if saved else _open_clip_config(config)
    width, quick_gelu = model_config["embed_dim"], model_config.get("quick_gelu", False)
    if saved or config.weights == "random":
        if modality == "image":
            vision = model_config["vision_cfg"] | {"image_size": config.image_size}
            return OpenClipImage(model_config, _build_vision_tower(width, vision, quick_gelu))
        text = model_config["text_cfg"] | {"context_length": config.max_tokens}
        return OpenClipText(model_config, _build_text_tower(width, text, quick_gelu))
    import open_clip

    model = open_clip.create_model(
        config.name, pretrained=config.weights, force_image_size=config.image_size
    )
    if modality == "image":
        return OpenClipImage(model_config, model.visual)
    custom = open_clip.create_model(config.name, pretrained=config.weights, force_custom_text=True)
    return OpenClipText(model_config, custom.text)


def _never_ask_to_run_code() -> None:
    """Of open_clip's text towers from the hub, which it loads without saying what is trusted."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
