"""What every tower is: its settings, and the shape that all libraries stand behind.

A `Backbone` has a `width`, takes named input tensors of the items that have its modality, and
returns [n, F].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from data_prep.sounds import MAX_RATE

Library = Literal["open_clip", "transformers", "efficientnet_lite", "conv", "given"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The tower of one modality."""

    library: Library
    """Where the architecture comes from; `conv` is a small tower of our own for sound, `given` is
    for vectors that data_prep was given."""

    name: str = ""
    """open_clip: a registered model or a JSON model config; transformers: a hub name, a folder, or
    `package:NAME/FOLDER` for weights inside an installed Python package; efficientnet_lite:
    `efficientnet-lite0`."""

    weights: str = "random"
    """`random`; `pretrained` (transformers, efficientnet_lite); for open_clip a tag or a file."""

    train: Literal["frozen", "top_k", "lora", "full"] = "full"
    """`frozen` keeps the backbone as it is (its features can then be cached); `top_k` tunes its
    last blocks; `lora` adds low-rank adapters to every block, merged in a release."""

    top_k: int = 1
    """Blocks nearest the output that `train: top_k` tunes, with the norms and heads after them."""

    lora_rank: int = 8
    """Rank of the adapters of `train: lora` (Hu et al. 2021)."""

    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""

    checkpointing: Literal["none", "blocks"] = "none"
    """`blocks` keeps only the inputs of the blocks for the backward pass and computes them again:
    less memory, about a third more time."""

    image_size: int = 224
    """Side in pixels of the square picture the tower sees."""

    max_tokens: int = 77
    """Texts are cut after this many tokens."""

    fit: Literal["crop", "squash"] = "crop"
    """How a picture becomes square: centre crop of the short side, or both sides scaled."""

    max_frames: int = 4
    """Pictures read of an item's frames, evenly spread over those it has."""

    frames_pool: Literal["mean", "attention"] = "mean"
    """How an item's frames become one vector: their mean, or weights that are learnt."""

    sample_rate: int = 16_000
    """Sound is resampled to this many samples a second, all channels mixed to one."""

    max_seconds: float = 10.0
    """Sound is cut after this long."""

    def __post_init__(self) -> None:
        if self.library not in ("given", "conv") and not self.name:
            raise ValueError(f"a {self.library} tower needs a name, e.g. ViT-B-32; found none")
        if not 8 <= self.image_size <= 4096 or not 2 <= self.max_tokens <= 1 << 16:
            raise ValueError(
                f"tower {self.name}: image_size must be 8 to 4096 and max_tokens 2 to 65536, "
                f"got {self.image_size} and {self.max_tokens}"
            )
        if self.top_k < 1 or self.lora_rank < 1 or self.lora_alpha <= 0:
            raise ValueError(
                f"tower {self.name}: top_k and lora_rank must be at least 1 and lora_alpha "
                f"positive, got {self.top_k}, {self.lora_rank} and {self.lora_alpha}"
            )
        if (
            not 1 <= self.max_frames <= 100
            or not 1000 <= self.sample_rate <= MAX_RATE
            or not 0 < self.max_seconds <= 3600
        ):
            raise ValueError(
                f"tower {self.name}: max_frames must be 1 to 100, sample_rate 1000 to {MAX_RATE} "
                f"and max_seconds above 0 and up to 3600, got {self.max_frames}, "
                f"{self.sample_rate} and {self.max_seconds}"
            )

    @property
    def fixed_features(self) -> bool:
        """Whether an item's features never change while training, so that they can be cached."""
        return self.train == "frozen" and self.frames_pool == "mean"


class Backbone(nn.Module):
    """Features of one modality; subclasses say how."""

    width: int

    def forward(self, **inputs: Tensor) -> Tensor:
        """Named inputs of n items → features [n, F]."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """What is needed, beside the weights, to build this backbone again without a network."""
        return {}

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters used after the last block although they are registered before the blocks."""
        return []

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, save for parts that are frozen whole.

        Their dropout stays off and their batch statistics stay still.
        """
        super().train(mode)
        for module in self.modules() if mode else ():
            parameters = list(module.parameters())
            if parameters and not any(one.requires_grad for one in parameters):
                nn.Module.train(module, False)
        return self


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
