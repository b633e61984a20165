"""Item content → one unit vector. Letters: see `batch.py`; M modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.batch import ItemBatch
from pretrain.towers import Backbone


@dataclass(frozen=True)
class ItemVectors:
    """What the item encoder says of n items."""

    fused_nD: Tensor
    """Unit vectors in the shared space; zeros without modalities."""

    modality_nD: dict[str, Tensor]
    """Unit vectors of each modality alone, zeros where the item lacks it."""

    gate_nM: Tensor
    """Weight of each modality in the fusion, rows sum to 1."""


def zero_last(layers: nn.Sequential) -> None:
    """Make the last layer zero, so that what these layers are added to is unchanged at step 0."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


class Adapter(nn.Module):
    """Features of one tower → the shared width.

    Features are standardised by fixed statistics of the catalogue at step 0 (`calibrate`). What
    pre-trained and random towers say of any two items is mostly the same, and without this the
    part that differs is learnt many times more slowly.

    At step 0 an adapter is the principal components of its features, in a part of the space of its
    own: the sum over modalities then says of two items what all their features say side by side.
    """

    def __init__(self, feature_width: int, *, width: int, part: slice, dropout: float) -> None:
        """`part` is where the principal components go."""
        super().__init__()
        self.feature_width = feature_width
        self.part = part
        self.mean_F: Tensor
        self.std_F: Tensor
        self.register_buffer("mean_F", torch.zeros(feature_width))
        self.register_buffer("std_F", torch.ones(feature_width))
        self.linear = nn.Linear(feature_width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )  # fmt: skip
        zero_last(self.mlp)

    def forward(self, features_nF: Tensor) -> Tensor:
        """[n, F] → [n, D]."""
        hidden_nD: Tensor = self.linear((features_nF - self.mean_F) / self.std_F)
        projected_nD: Tensor = hidden_nD + self.mlp(hidden_nD)
        return projected_nD

    @torch.no_grad()
    def calibrate(self, features_pF: Tensor) -> None:
        """Take mean and spread from the features of some items."""
        self.mean_F.copy_(features_pF.float().mean(0))
        spread_F = features_pF.float().std(0, correction=0)
        # A feature that hardly varies is noise: it is not blown up beyond the others.
        self.std_F.copy_(spread_F.clamp(min=0.1 * float(spread_F.mean()) + 1e-6))
        self._start_from((features_pF.float() - self.mean_F) / self.std_F)

    def _start_from(self, standard_pF: Tensor) -> None:
        """Principal components of these features, of mean square 1; all else is zero."""
        _, spread_k, component_kF = torch.linalg.svd(standard_pF, full_matrices=False)
        known = int((spread_k > 1e-5 * spread_k.max()).sum())
        count = min(known, self.part.stop - self.part.start)
        if count == 0:
            return  # one item, or all the same: the weights stay as they were drawn
        scale = (standard_pF @ component_kF[:count].T).square().mean().rsqrt()
        self.linear.bias.zero_()
        self.linear.weight.zero_()
        self.linear.weight[self.part.start : self.part.start + count] = scale * component_kF[:count]


class Fusion(nn.Module):
    """Gated late fusion of what modalities an item has, all of the same weight at step 0.

    An absent modality is represented by a learnt null token, which the gate may weigh too: that
    a picture is missing is itself a fact about the item.
    """

    def __init__(self, modalities: list[str], *, width: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.null_MD = nn.Parameter(torch.randn(len(modalities), width) * 0.02)
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.bias_2M = nn.Parameter(torch.tensor([[-2.0], [0.0]]).repeat(1, len(modalities)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        zero_last(self.out)

    def forward(self, tokens_nMD: Tensor, presence_nM: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and presence mask → fused [n, D] (not yet of unit length) and gate [n, M]."""
        tokens_nMD = torch.where(presence_nM[..., None], tokens_nMD, self.null_MD)
        bias_nM = torch.where(presence_nM, self.bias_2M[1], self.bias_2M[0])
        gate_nM = (self.score(tokens_nMD).squeeze(-1) + bias_nM).softmax(-1)
        mixed_nD = (gate_nM[..., None] * tokens_nMD).sum(1)
        return mixed_nD + self.out(mixed_nD), gate_nM


class ItemEncoder(nn.Module):
    """Towers → adapters → gated fusion → unit vector.

    Without backbones (`backbones={}`) it runs on cached features alone; without any modality it
    says nothing: zeros, to which a model on ids alone adds its ids.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        *,
        feature_widths: Mapping[str, int],
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.modalities = list(feature_widths)
        self.backbones = nn.ModuleDict(dict(backbones))
        bounds = np.linspace(0, width, len(feature_widths) + 1).astype(int).tolist()
        parts = [slice(start, stop) for start, stop in pairwise(bounds)]
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(feature_width, width=width, part=part, dropout=dropout)
                for (name, feature_width), part in zip(feature_widths.items(), parts, strict=True)
            }
        )
        # Made only where it is used, so that no parameter is left without a gradient.
        self.fusion = Fusion(self.modalities, width=width) if self.modalities else None

    def features(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        """Backbone features of the items that have this modality, [present, F]."""
        if "features" in inputs:
            return inputs["features"]
        backbone = self.backbones[modality]
        # A frozen backbone also keeps its dropout and batch statistics still.
        if not any(parameter.requires_grad for parameter in backbone.parameters()):
            backbone.eval()
            with torch.no_grad():
                frozen: Tensor = backbone(**inputs)
            return frozen
        features: Tensor = backbone(**inputs)
        return features

    @torch.no_grad()
    def calibrate(self, items: ItemBatch) -> None:
        """Fit the adapters' input scales to these items; to be called once, before training."""
        self.eval()
        for modality, adapter in self.adapters.items():
            if bool(items.presence[modality].any()):
                assert isinstance(adapter, Adapter)
                adapter.calibrate(self.features(modality, items.inputs[modality]))
        self.train()

    def forward(self, items: ItemBatch, *, dropped_nM: Tensor | None = None) -> ItemVectors:
        """Encode n items; the fusion does without what is marked in `dropped_nM`."""
        if self.fusion is None:
            nothing_nD = torch.zeros(len(items.rows_n), self.width, device=items.rows_n.device)
            return ItemVectors(nothing_nD, {}, nothing_nD[:, :0])
        tokens, alone = [], {}
        for modality in self.modalities:
            projected_pD = self.adapters[modality](self.features(modality, items.inputs[modality]))
            present_n = items.presence[modality]
            token_nD = projected_pD.new_zeros(len(present_n), projected_pD.shape[-1])
            if bool(present_n.any()):
                token_nD = token_nD.masked_scatter(present_n[:, None], projected_pD)
            else:  # a blank input stood in: keep its parameters in the graph, at weight zero
                token_nD = token_nD + 0.0 * projected_pD.sum()
            alone[modality] = F.normalize(token_nD.float(), dim=-1)
            # Of one length, so that no modality outweighs another before the gate says so.
            tokens.append(alone[modality] * self.width**0.5)
        presence_nM = items.presence_of(self.modalities)
        if dropped_nM is not None:
            presence_nM = presence_nM & ~dropped_nM
        fused_nD, gate_nM = self.fusion(torch.stack(tokens, dim=1), presence_nM)
        return ItemVectors(F.normalize(fused_nD.float(), dim=-1), alone, gate_nM)
