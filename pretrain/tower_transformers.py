"""transformers' models by name: text, pictures and sound."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from data_prep.tokens import resolve_package
from pretrain.backbone import Backbone, TowerConfig
from pretrain.tower_sound import TransformersSound

NO_CODE = {"trust_remote_code": False}
"""Else transformers asks on the terminal whether to run what a model brings along."""


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


def build_transformers(
    modality: str, config: TowerConfig, saved: dict[str, Any] | None
) -> Backbone:
    """An encoder of text, pictures or sound; `saved` as in `towers.build_backbone`."""
    from transformers import AutoConfig, AutoModel

    if saved:
        settings = dict(saved["transformers_config"])
        described = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModel.from_config(described, **NO_CODE)
    elif config.weights == "random":
        described = AutoConfig.from_pretrained(resolve_package(config.name), **NO_CODE)
        model = AutoModel.from_config(described, **NO_CODE)
    else:
        # use_safetensors: a hub name may offer a pickle as well, and that is never opened.
        name = resolve_package(config.name)
        model = AutoModel.from_pretrained(name, use_safetensors=True, **NO_CODE)
    if modality == "sound":
        return TransformersSound(model, config)
    return TransformersImage(model) if modality == "image" else TransformersText(model)
