"""Item rows → `ItemBatch`: content read and decoded, each item once, or cached features."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.content import ItemContent
from data_prep.dataset import Dataset
from data_prep.records import SOUND_PREFIX, decode_npy, frame_member, vector_member
from data_prep.sounds import SUFFIXES
from pretrain.batch import ItemBatch
from pretrain.feature_cache import FeatureCache
from pretrain.preprocess import (
    FramesPreprocessor,
    Inputs,
    Jpeg,
    PicturePreprocessor,
    Pixels,
    Preprocessor,
    TextPreprocessor,
    build_preprocessors,
)
from pretrain.sound_decoding import SoundPreprocessor
from pretrain.towers import TowerConfig

log = logging.getLogger(__name__)

CHECKED_TEXTS = 64
"""Items whose stored token ids are compared with the tower's own tokenizer."""


SOUND_SUFFIXES = sorted(set(SUFFIXES.values()))


class ItemLoader:
    """Item rows → `ItemBatch`: from cached features, or read, decoded and kept in memory."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        preprocessors: Mapping[str, Preprocessor],
        features: FeatureCache | None = None,
        cache_mb: int = 0,
    ) -> None:
        """Read from a dataset.

        Args:
            dataset: where the content lies.
            preprocessors: one a tower.
            features: cached features; content is then not read at all.
            cache_mb: decoded pictures kept in memory, MiB.
        """
        self.content: ItemContent = dataset.content()
        self.preprocessors = preprocessors
        self.cached_features = features
        self._free_bytes = cache_mb << 20
        self._decoded: dict[int, Pixels] = {}
        self._stored_frames = dataset.manifest.modalities.get("frames", {}).get("max_frames", 0)
        text = preprocessors.get("text")
        self._stored_ids = isinstance(text, TextPreprocessor) and self._has_ids_of(text, dataset)

    def load(self, rows: Sequence[int] | NDArray[np.int64]) -> ItemBatch:
        """Inputs of these items, in this order.

        A modality's content of all items is taken before any of it is decoded: where the tars
        exceed the memory, the disk then has a whole batch to read at once (`MappedFile.span`), and
        in the order it lies there if the rows are sorted, as those of a training step are.
        """
        rows_n = np.asarray(rows, np.int64)
        if self.cached_features is not None:
            return self.cached_features.load(rows_n)
        asked = rows_n.tolist()
        inputs: dict[str, dict[str, Tensor]] = {}
        presence: dict[str, Tensor] = {}
        for name, one in self.preprocessors.items():
            if isinstance(one, PicturePreprocessor):
                made = self._pictures(asked, one)
            elif isinstance(one, FramesPreprocessor):
                made = one.batch([self._frames(row, one) for row in asked])
            elif isinstance(one, SoundPreprocessor):
                made = one.batch([self._sound(row) for row in asked])
            elif isinstance(one, TextPreprocessor):
                made = self._texts(asked, one)
            else:
                made = one.batch(self._vectors(asked, name))
            inputs[name], presence[name] = made
        return ItemBatch(rows_n=torch.from_numpy(rows_n), inputs=inputs, presence=presence)

    def _pictures(self, rows: list[int], preprocessor: PicturePreprocessor) -> Inputs:
        found: list[Jpeg | Pixels | None] = []
        for row in rows:
            decoded = self._decoded.get(row)
            found.append(self.content.image(row) if decoded is None else decoded)
        inputs, presence = preprocessor.batch(found)
        if self._free_bytes > 0:
            self._keep(rows, inputs["pixels"], presence)
        return inputs, presence

    def _keep(self, rows: list[int], pixels_pCHW: Tensor, presence_n: Tensor) -> None:
        """Copy newly decoded pictures while there is room."""
        present = [row for row, there in zip(rows, presence_n.tolist(), strict=True) if there]
        pixels_pHWC = pixels_pCHW.permute(0, 2, 3, 1).numpy()
        for row, picture in zip(present, pixels_pHWC, strict=False):
            if row not in self._decoded and picture.nbytes <= self._free_bytes:
                self._decoded[row] = picture.copy()
                self._free_bytes -= picture.nbytes

    def _frames(self, row: int, preprocessor: FramesPreprocessor) -> list[Jpeg]:
        """The frames of an item that its tower reads; they are numbered without gaps."""
        found: list[Jpeg] = []
        for number in range(self._stored_frames):
            frame = self.content.member(frame_member(number), row)
            if frame is None:
                break
            found.append(frame)
        return [found[number] for number in preprocessor.chosen(len(found))]

    def _sound(self, row: int) -> bytes | memoryview | None:
        for suffix in SOUND_SUFFIXES:
            clip = self.content.member(SOUND_PREFIX + suffix, row)
            if clip is not None:
                return clip
        return None

    def _texts(self, rows: list[int], preprocessor: TextPreprocessor) -> Inputs:
        if not self._stored_ids:
            return preprocessor.batch(self._joined(rows, preprocessor))
        length = preprocessor.config.max_tokens
        return preprocessor.from_ids(
            *self.content.tokens(rows, length=length, padding=preprocessor.padding)
        )

    def _joined(self, rows: list[int], preprocessor: TextPreprocessor) -> list[str]:
        bodies = [self.content.json(row) for row in rows]
        return [
            preprocessor.join(json.loads(bytes(body))["texts"]) if body is not None else ""
            for body in bodies
        ]

    def _vectors(self, rows: list[int], name: str) -> list[NDArray[np.float32] | None]:
        payloads = [self.content.member(vector_member(name), row) for row in rows]
        return [
            None if payload is None else decode_npy(bytes(payload)).astype(np.float32)
            for payload in payloads
        ]

    def _has_ids_of(self, text: TextPreprocessor, dataset: Dataset) -> bool:
        """Whether the ids made at shard time are those that this tower's tokenizer gives."""
        stored = dataset.manifest.modalities.get("text", {}).get("tokens")
        tower = text.config
        name = "open_clip" if tower.library == "open_clip" else tower.name
        wanted = {"tokenizer": name, "max_tokens": tower.max_tokens}
        if stored is None or self.cached_features is not None:
            return False
        if stored != wanted:
            log.warning(
                "%s: token ids are of %s, the tower needs %s; texts are tokenised while training, "
                "set `tokens` in the settings of python -m data_prep shard to spare that",
                *(dataset.dir, stored, wanted),
            )
            return False
        count = min(CHECKED_TEXTS, dataset.num_items)
        rows = np.linspace(0, dataset.num_items - 1, count).astype(int).tolist()
        ids, counts = self.content.tokens(rows, length=tower.max_tokens, padding=text.padding)
        ours, presence = text.batch(self._joined(rows, text))
        theirs, stored_presence = text.from_ids(ids, counts)
        if torch.equal(presence, stored_presence) and torch.equal(ours["tokens"], theirs["tokens"]):
            return True
        raise ValueError(
            f"{dataset.dir}: token ids made at shard time differ from those of the tokenizer "
            f"{name!r} installed here; re-run python -m data_prep shard, or without `tokens`"
        )


def preprocessors_of(
    dataset: Dataset, towers: Mapping[str, TowerConfig], *, threads: int = 1
) -> dict[str, Preprocessor]:
    """Preprocessors of these towers on this dataset; `threads` decode pictures.

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
        threads=threads,
    )


def vector_widths_of(dataset: Dataset) -> dict[str, int]:
    """Width of each given vector."""
    modalities = dataset.manifest.modalities
    return {name: entry["width"] for name, entry in modalities.items() if "width" in entry}
