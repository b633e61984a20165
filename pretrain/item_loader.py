"""Item rows → `ItemBatch`: content read, decoded and kept in memory, or cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_prep.content import ItemContent
from data_prep.dataset import Dataset
from pretrain.batch import ItemBatch
from pretrain.feature_cache import FeatureCache
from pretrain.preprocess import Preprocessor, build_preprocessors, collate_items
from pretrain.towers import TowerConfig


class ItemLoader:
    """Item rows → `ItemBatch`: from cached features, or read, decoded and kept in memory."""

    def __init__(
        self,
        content: ItemContent,
        *,
        preprocessors: Mapping[str, Preprocessor],
        features: FeatureCache | None = None,
        threads: int = 1,
        cache_mb: int = 0,
    ) -> None:
        self.content = content
        self.preprocessors = preprocessors
        self.cached_features = features
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._free_bytes = cache_mb << 20
        self._kept: dict[int, dict[str, dict[str, Tensor] | None]] = {}

    def load(self, rows: Sequence[int] | NDArray[np.int64]) -> ItemBatch:
        """Inputs of these items, in this order."""
        if self.cached_features is not None:
            return self.cached_features.load(np.asarray(rows, np.int64))
        if self._threads > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads)
        run = map if self._pool is None else self._pool.map
        prepared = list(run(self._prepare, [int(row) for row in rows]))
        return collate_items(rows, prepared, preprocessors=self.preprocessors)

    def _prepare(self, row: int) -> dict[str, dict[str, Tensor] | None]:
        if row in self._kept:
            return self._kept[row]
        record = self.content.read(row)
        item = {name: one.one(record) for name, one in self.preprocessors.items()}
        size = sum(t.nbytes for inputs in item.values() if inputs for t in inputs.values())
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[row] = item
        return item


def preprocessors_of(
    dataset: Dataset, towers: Mapping[str, TowerConfig]
) -> dict[str, Preprocessor]:
    """Preprocessors of these towers on this dataset.

    Raises:
        ValueError: a tower for a modality that the dataset does not have.
    """
    modalities = dataset.manifest.modalities
    for name in towers:
        if name not in modalities:
            raise ValueError(
                f"model.towers.{name}: the dataset {dataset.dir} has {sorted(modalities)}; map the "
                "column in the settings of python -m data_prep shard, or take the tower out"
            )
    return build_preprocessors(
        towers,
        text_fields=modalities.get("text", {}).get("fields", ()),
        vector_widths=vector_widths_of(dataset),
    )


def vector_widths_of(dataset: Dataset) -> dict[str, int]:
    """Width of each given vector."""
    modalities = dataset.manifest.modalities
    return {name: entry["width"] for name, entry in modalities.items() if "width" in entry}
