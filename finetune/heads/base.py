"""What every head takes and gives, and the layers they share.

Shapes: B impressions, F fields, E width of a field, L history length, H width of a history item.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.settings import HeadConfig

_TORCH_LINEAR = F.linear
"""ZeRO-3 puts another in its place, for the rest of the process, which knows no oneDNN."""


@dataclass(frozen=True)
class HeadInputs:
    """An impression after embedding."""

    fields_BFE: Tensor
    """One vector a field: ids, features, content."""
    first_order_B: Tensor
    """Sum of the fields' own weights: the linear part, bias included."""
    target_BH: Tensor
    """The item shown: its id vector, with its content beside it where there is content."""
    history_BLH: Tensor
    """Items of the history like the target, oldest first, padding at the end."""
    history_mask_BL: Tensor
    """True where there is an item."""


@dataclass(frozen=True, kw_only=True)
class InputLayout:
    """What is known of a head's inputs before there are any."""

    num_fields: int
    field_width: int
    history_width: int
    """Width of the target and of a history item."""
    history_length: int
    """Places of a history, empty ones included."""
    user_field: int
    """Place of the user's id among the fields."""
    item_field: int
    """Place of the shown item's id among the fields."""


class Head(nn.Module, ABC):
    """Fields to a logit."""

    uses_fields: ClassVar[bool] = True
    """Whether the head reads `fields_BFE`; otherwise a field has no vector, only its weight."""
    uses_history: ClassVar[bool] = False
    """Whether the head pools the history itself; otherwise its mean is one of the fields."""
    uses_first_order: ClassVar[bool] = False
    """Whether the head reads `first_order_B`, so that fields have a weight of their own."""

    def __init__(self, config: HeadConfig, layout: InputLayout) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: HeadInputs) -> Tensor:
        """Logit of each impression, [B]."""


class Dice(nn.Module):
    """Data-adaptive PReLU (Zhou et al. 2018, section 5.3): p(s) s + (1 - p(s)) α s.

    p is a sigmoid of s standardised over the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        """Same shape out."""
        p = torch.sigmoid(self.norm(s))
        out: Tensor = p * s + (1 - p) * self.alpha * s
        return out


def initialise(head: nn.Module) -> None:
    """Start linear layers at Glorot's scale (Glorot and Bengio 2010, eq. 16), biases at zero.

    Vectors of fields are small at first, and torch's own start, whose variance is a third of
    1 / inputs, makes them smaller layer by layer: with the one epoch that ids allow, heads on
    video-ctr then end 0.001 AUC lower on validation.
    """
    for module in head.modules():
        if type(module) is nn.Linear:  # not the output layer inside MultiheadAttention
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DeepPart(nn.Sequential):
    """Layers one after the other; on a CPU in float32 the linear ones run in oneDNN.

    torch multiplies float32 matrices by MKL, which leaves half of a CPU's width unused where the
    CPU is not Intel's: oneDNN was up to twice as fast there, and its sums are as exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, width before] → [B, width after]."""
        if not _onednn_helps(x):
            for layer in self:
                x = layer(x)
            return x
        for layer in self:
            if isinstance(layer, nn.Linear):
                x = x if x.is_mkldnn else x.to_mkldnn()
            elif isinstance(layer, nn.Dropout) and (layer.p == 0 or not layer.training):
                continue
            elif x.is_mkldnn and not isinstance(layer, nn.ReLU):
                x = x.to_dense()
            x = layer(x)
        return x.to_dense() if x.is_mkldnn else x


def _onednn_helps(x: Tensor) -> bool:
    return (
        F.linear is _TORCH_LINEAR
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def deep_part(
    width: int,
    hidden: tuple[int, ...],
    *,
    config: HeadConfig,
    activation: type[nn.Module] | None = nn.ReLU,
) -> DeepPart:
    """Linear layers with dropout, without an output layer; no activation means Dice."""
    layers: list[nn.Module] = []
    for before, after in pairwise((width, *hidden)):
        layers.append(nn.Linear(before, after))
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(Dice(after) if activation is None else activation())
        layers.append(nn.Dropout(config.dropout))
    return DeepPart(*layers)
