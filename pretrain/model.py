"""The two encoders, their temperatures and how both meet ids. Letters: see `batch.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.item_encoder import ItemEncoder, ItemVectors
from pretrain.set_encoder import SetPool
from pretrain.towers import Backbone, TowerConfig
from pretrain.user_encoder import UserEncoder, UserEncoderConfig
from pretrain.user_features import UserColumn

MAX_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the shared space."""

    towers: dict[str, TowerConfig] = field(default_factory=dict)
    """Modality → tower; the keys are `image`, `text` and the names of given vectors. `{}`: ids
    alone, the control of what content adds; `ids` is then `both` and `id_dropout` 0."""

    width: int = 128
    """Width D of the shared space."""

    dropout: float = 0.1
    """Dropout in the adapters."""

    user: UserEncoderConfig = field(default_factory=UserEncoderConfig)
    """The user encoder."""

    ids: Literal["none", "history", "both"] = "history"
    """Where a learnt embedding of the item id is added to its content: nowhere, to the events of
    a history, or to the item's own vector too."""

    id_dropout: float = 0.5
    """Share of items whose id is hidden in a step, so that content alone works on new items."""

    modality_dropout: float = 0.0
    """Share of the modalities of items that are hidden from the fusion in a step, as if the item
    lacked them; an item's last one never is. It keeps one modality from doing all the work."""

    temperature: float = 0.07
    """Softmax temperature at step 0; learnt in log space from there, bounded below by 0.01."""

    def __post_init__(self) -> None:
        if not self.towers and self.ids != "both":
            raise ValueError(
                f"model.encoders.towers is empty and ids is {self.ids!r}, so that nothing would be "
                "known of an item; name a tower, e.g. text or image, or set ids to 'both'"
            )
        if not self.towers and self.id_dropout:
            raise ValueError(
                f"model.encoders.id_dropout is {self.id_dropout} and towers is empty: an item "
                "whose id is hidden would be nothing at all; set id_dropout to 0"
            )
        if self.width < 1 or not 0 <= self.dropout < 1 or not 0 <= self.id_dropout <= 1:
            raise ValueError(
                f"model: width must be >= 1, dropout in [0, 1) and id_dropout in [0, 1], got "
                f"{self.width}, {self.dropout}, {self.id_dropout}"
            )
        if not 0 <= self.modality_dropout < 1:
            raise ValueError(
                f"model.modality_dropout must be in [0, 1), got {self.modality_dropout}"
            )
        if not 1 / MAX_SCALE <= self.temperature <= 10:
            raise ValueError(
                f"model.temperature must be between {1 / MAX_SCALE} and 10, got {self.temperature}"
            )


class Temperature(nn.Module):
    """A learnt inverse temperature, bounded as in CLIP (Radford et al. 2021, section 2.5).

    A module of its own, since ZeRO-3 gathers a parameter when its module is called.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))

    def forward(self) -> Tensor:
        """The scale, at most 100."""
        return self.log_scale.float().clamp(max=math.log(MAX_SCALE)).exp()


class TwoSpaceModel(nn.Module):
    """Item encoder and user encoder in one space."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        backbones: Mapping[str, Backbone],
        feature_widths: Mapping[str, int],
        num_items: int,
        user_columns: Sequence[UserColumn] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.item_encoder = ItemEncoder(
            backbones, feature_widths=feature_widths, width=config.width, dropout=config.dropout
        )
        self.user_encoder: UserEncoder | SetPool
        if config.user.pooling == "question":
            self.user_encoder = SetPool(
                config.width, heads=config.user.heads, dropout=config.user.dropout
            )
        else:
            self.user_encoder = UserEncoder(config.user, width=config.width, columns=user_columns)
        self.ids: nn.Embedding | None = None
        if config.ids != "none":
            self.ids = nn.Embedding(num_items, config.width)
            # Zero: an item that was never trained on is the same as one whose id is hidden.
            nn.init.zeros_(self.ids.weight)
            if not config.towers:  # of about the length that content has; 0 has no direction
                nn.init.normal_(self.ids.weight, std=config.width**-0.5)
        self.temperature = Temperature(config.temperature)
        self.pair_temperature = Temperature(config.temperature)

    @torch.no_grad()
    def forget_ids(self, rows_n: Tensor) -> None:
        """Set the ids of items to zero, such as those that are never trained on."""
        if self.ids is not None:
            self.ids.weight[rows_n] = 0.0

    def encode_items(
        self, vectors: ItemVectors, rows_n: Tensor, *, hidden_n: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add ids to content.

        Args:
            vectors: what the item encoder says.
            rows_n: item rows.
            hidden_n: True where the id is hidden in this step.

        Returns:
            Unit vectors of the items [n, D] and their vectors as events of a history [n, D].
        """
        item_nD = event_nD = vectors.fused_nD
        if self.ids is not None:
            id_nD = self.ids(rows_n).float()
            if hidden_n is not None:
                id_nD = id_nD * ~hidden_n[:, None]
            event_nD = event_nD + id_nD
            if self.config.ids == "both":
                item_nD = nn.functional.normalize(item_nD + id_nD, dim=-1)
        return item_nD, event_nD

    def encode_histories(
        self,
        event_nD: Tensor,
        *,
        history_BL: Tensor,
        times_BL: Tensor,
        users_BC: Tensor | None = None,
    ) -> Tensor:
        """States [B, L + 1, D] of histories given as positions in `event_nD`, -1 after the last."""
        mask_BL = history_BL >= 0
        events_BLD = event_nD[history_BL.clamp(min=0)]
        if isinstance(self.user_encoder, SetPool):
            pooled_BD: Tensor = self.user_encoder(events_BLD, mask_BL=mask_BL)
            return pooled_BD[:, None].expand(-1, history_BL.shape[1] + 1, -1)
        states: Tensor = self.user_encoder(
            events_BLD, mask_BL=mask_BL, times_BL=times_BL, users_BC=users_BC
        )
        return states
