"""Where a batch's item vectors come from: a frozen table, or an encoder that is trained.

Shapes: I items (one zero row more for no item), n distinct items of a batch, W width of their
vectors, F width of one tower's features.
"""

import copy
import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.dataset import Dataset
from finetune.content_settings import ContentConfig
from pretrain.backbone import Backbone
from pretrain.batch import ItemBatch
from pretrain.feature_cache import FeatureCache
from pretrain.id_map import rows_of_ids
from pretrain.item_loader import ItemLoader
from pretrain.tuning import tune

if TYPE_CHECKING:
    from pretrain import Release

logger = logging.getLogger(__name__)

_CHUNK_ITEMS = 256
"""Items encoded at a time where there is no gradient."""


class FrozenItems(nn.Module):
    """Vectors as they are."""

    item_IW: Tensor

    def __init__(self, item_IW: Tensor) -> None:
        super().__init__()
        # They come with the embeddings folder, so they are not saved with a run.
        self.register_buffer("item_IW", item_IW, persistent=False)

    def forward(self, rows_n: Tensor) -> Tensor:
        """Vectors [n, W]; the last row, or -1, is no item."""
        return self.item_IW[rows_n]


class TunedItems(nn.Module):
    """The release's item encoder as a part of the CTR model; ids stay as they were released.

    Each distinct item of a batch is encoded once, from the features of its frozen towers
    (`tune: adapter`) or from its content. Scoring encodes the catalogue once and reads a table.
    """

    known_row_I: Tensor

    def __init__(self, release: "Release", dataset: Dataset, *, config: ContentConfig) -> None:
        super().__init__()
        self.num_items = dataset.num_items
        model = copy.deepcopy(release.model)
        self.model = [model]  # in a list: its other parts are none of this module's parameters
        self.encoder, self.ids = model.item_encoder, model.ids
        self.loader = item_loader(release, dataset, config=config)
        if config.tune == "adapter":
            self.encoder.backbones = nn.ModuleDict()
        rows = rows_of_ids(dataset.items["item_id"].combine_chunks(), known=release.item_ids)
        self.register_buffer("known_row_I", torch.from_numpy(rows), persistent=False)
        self.encoder.requires_grad_(True)
        for name, backbone in self.encoder.backbones.items():
            tower = release.config.model.towers[name]
            if config.tune == "adapter" or tower.library == "given":
                continue
            assert isinstance(backbone, Backbone)
            tuned = dataclasses.replace(
                tower,
                train=config.tune,
                top_k=config.top_k,
                lora_rank=config.lora_rank,
                lora_alpha=config.lora_alpha,
            )
            tune(backbone, tuned)
        self._table_IW: Tensor | None = None

    def train(self, mode: bool = True) -> "TunedItems":
        """Training mode, in which the table of the catalogue is out of date."""
        super().train(mode)
        self._table_IW = None
        return self

    def forward(self, rows_n: Tensor) -> Tensor:
        """Vectors [n, W] of distinct items; the last row, or -1, is no item, and zero."""
        if not self.training:
            if self._table_IW is None:
                self._table_IW = self._catalogue()
            return self._table_IW[rows_n]
        is_item_n = (rows_n >= 0) & (rows_n < self.num_items)
        vector_nW = self._encode(rows_n[is_item_n])
        blank_nW = vector_nW.new_zeros(len(rows_n), vector_nW.shape[1])
        return blank_nW.masked_scatter(is_item_n[:, None], vector_nW)

    @torch.no_grad()
    def _catalogue(self) -> Tensor:
        rows_I = torch.arange(self.num_items, device=self.known_row_I.device)
        parts = [self._encode(rows_n) for rows_n in torch.split(rows_I, _CHUNK_ITEMS)]
        return torch.cat([*parts, torch.zeros_like(parts[0][:1])])

    def _encode(self, rows_n: Tensor) -> Tensor:
        batch = _moved(self.loader.load(rows_n.cpu().numpy()), rows_n.device)
        known_n = self.known_row_I[rows_n]
        vector_nW, _ = self.model[0].encode_items(
            self.encoder(batch), known_n.clamp(min=0), hidden_n=known_n < 0
        )
        return vector_nW


def item_loader(release: "Release", dataset: Dataset, *, config: ContentConfig) -> ItemLoader:
    """What the encoder reads of an item: content, or features of the towers as released.

    Raises:
        ValueError: a release on ids alone, or cached features of other towers or items.
    """
    towers = release.config.model.towers
    if not towers:
        raise ValueError(
            "rung tuned: the release knows items by their ids alone, so that it has no encoder to "
            "tune; leave that rung out"
        )
    content = ItemLoader(dataset, preprocessors=release.preprocessors)
    if config.tune != "adapter":
        return content
    if config.features_dir is not None:
        cache = FeatureCache.open(config.features_dir, dataset=dataset, towers=towers)
    else:
        cache = features_of(release, dataset, content)
    return ItemLoader(dataset, preprocessors=release.preprocessors, features=cache)


@torch.inference_mode()
def features_of(release: "Release", dataset: Dataset, content: ItemLoader) -> FeatureCache:
    """Run the release's towers over all items, once."""
    logger.info("features of %d items; content.features_dir spares this", dataset.num_items)
    encoder = release.model.item_encoder.eval()
    features: dict[str, np.ndarray] = {}
    masks: dict[str, np.ndarray] = {}
    for name, width in release.config.feature_widths.items():
        features[name] = np.zeros((dataset.num_items, width), np.float32)
        masks[name] = np.zeros(dataset.num_items, bool)
    for rows_n in np.array_split(
        np.arange(dataset.num_items), max(1, dataset.num_items // _CHUNK_ITEMS)
    ):
        batch = content.load(rows_n)
        for name, made in features.items():
            present_n = batch.presence[name].numpy()
            masks[name][rows_n] = present_n
            if present_n.any():
                made[rows_n[present_n]] = encoder.features(name, batch.inputs[name]).float().numpy()
    return FeatureCache(features, masks)


def _moved(batch: ItemBatch, device: torch.device) -> ItemBatch:
    if device.type == "cpu":
        return batch
    return ItemBatch(
        rows_n=batch.rows_n.to(device),
        inputs={
            name: {key: value.to(device) for key, value in inputs.items()}
            for name, inputs in batch.inputs.items()
        },
        presence={name: value.to(device) for name, value in batch.presence.items()},
    )
