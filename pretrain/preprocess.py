"""From an item's record to the inputs of its towers, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_prep.records import ItemRecord
from pretrain.batch import ItemBatch
from pretrain.towers import TowerConfig, resolve_name

MAX_PIXELS = 50_000_000


def decode_picture(data: bytes, *, size: int, fit: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """JPEG bytes → [size, size, 3] uint8.

    The JPEG is decoded at the smallest DCT scale that is still at least as large as `size`.

    Raises:
        ValueError: no JPEG, or one of more pixels than `MAX_PIXELS`; found in the header, before
            anything is decoded.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ValueError(
            f"picture of {len(data)} bytes: found no JPEG ({error}); "
            "data_prep.pictures.prepare_picture makes one of other formats"
        ) from error
    if height * width > MAX_PIXELS:
        raise ValueError(f"picture: found {width} x {height} pixels, at most {MAX_PIXELS} are read")
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size)
    picture = Image.fromarray(pixels)
    if picture.size != (size, size):
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side) if fit == "crop" else (0, 0, width, height)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture)


class PicturePreprocessor:
    """Pictures → `pixels` uint8 [n, 3, size, size]; normalising is the tower's, on its device."""

    def __init__(self, config: TowerConfig) -> None:
        self.config = config

    def one(self, record: ItemRecord) -> dict[str, Tensor] | None:
        """Inputs of one item, None where it has no picture."""
        if record.image is None:
            return None
        pixels = decode_picture(record.image, size=self.config.image_size, fit=self.config.fit)
        return {"pixels": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}

    def blank(self) -> dict[str, Tensor]:
        """Inputs that stand in where a batch has no picture at all."""
        size = self.config.image_size
        return {"pixels": torch.zeros(3, size, size, dtype=torch.uint8)}

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""


class TextPreprocessor:
    """Title, description, … joined → `tokens` and `attention`, int64 [n, max_tokens]."""

    def __init__(
        self, config: TowerConfig, *, fields: Sequence[str], tokenizer_dir: Path | None = None
    ) -> None:
        self.config = config
        self.fields = tuple(fields)
        self._tokenizer: Any
        if config.library == "open_clip":
            from open_clip import SimpleTokenizer

            self._tokenizer = SimpleTokenizer(context_length=config.max_tokens)
        else:
            from transformers import AutoTokenizer

            source = tokenizer_dir or resolve_name(config.name)
            self._tokenizer = AutoTokenizer.from_pretrained(source)

    def join(self, record: ItemRecord) -> str:
        """The item's texts in the order of the dataset's fields."""
        return ". ".join(record.texts[name] for name in self.fields if record.texts.get(name))

    def one(self, record: ItemRecord) -> dict[str, Tensor] | None:
        """Inputs of one item, None where it has no text."""
        text = self.join(record)
        return self._encode(text) if text else None

    def blank(self) -> dict[str, Tensor]:
        """Inputs that stand in where a batch has no text at all."""
        return self._encode("-")

    def _encode(self, text: str) -> dict[str, Tensor]:
        if self.config.library == "open_clip":
            tokens = self._tokenizer([text])[0]
            return {"tokens": tokens, "attention": (tokens != 0).long()}
        encoded = self._tokenizer(
            text,
            truncation=True,
            max_length=self.config.max_tokens,
            padding="max_length",
            return_tensors="pt",
        )
        return {"tokens": encoded["input_ids"][0], "attention": encoded["attention_mask"][0]}

    def save(self, folder: Path) -> None:
        """Write the tokenizer; open_clip's is part of that package."""
        if self.config.library != "open_clip":
            self._tokenizer.save_pretrained(folder)


class VectorPreprocessor:
    """Given vectors → `vector` float32 [n, F]."""

    def __init__(self, name: str, *, width: int) -> None:
        self.name = name
        self.width = width

    def one(self, record: ItemRecord) -> dict[str, Tensor] | None:
        """Inputs of one item, None where it has no such vector."""
        vector = record.vectors.get(self.name)
        return (
            None if vector is None else {"vector": torch.from_numpy(np.array(vector, np.float32))}
        )

    def blank(self) -> dict[str, Tensor]:
        """Inputs that stand in where a batch has no such vector at all."""
        return {"vector": torch.zeros(self.width)}

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""


Preprocessor = PicturePreprocessor | TextPreprocessor | VectorPreprocessor


def build_preprocessors(
    towers: Mapping[str, TowerConfig],
    *,
    text_fields: Sequence[str],
    vector_widths: Mapping[str, int],
    tokenizer_dir: Path | None = None,
) -> dict[str, Preprocessor]:
    """One preprocessor a tower, by modality."""
    built: dict[str, Preprocessor] = {}
    for modality, config in towers.items():
        if config.library == "given":
            built[modality] = VectorPreprocessor(modality, width=vector_widths[modality])
        elif modality == "image":
            built[modality] = PicturePreprocessor(config)
        else:
            built[modality] = TextPreprocessor(
                config, fields=text_fields, tokenizer_dir=tokenizer_dir
            )
    return built


def collate_items(
    rows: Sequence[int] | NDArray[np.int64],
    prepared: Sequence[Mapping[str, Mapping[str, Tensor] | None]],
    *,
    preprocessors: Mapping[str, Preprocessor],
) -> ItemBatch:
    """Prepared inputs of single items → one batch.

    A modality that no item of the batch has gets one blank input: every rank then runs every
    tower in every step, as DDP and ZeRO ask.
    """
    inputs: dict[str, dict[str, Tensor]] = {}
    presence: dict[str, Tensor] = {}
    for modality, preprocessor in preprocessors.items():
        found = [item[modality] for item in prepared]
        present = [entry for entry in found if entry is not None] or [preprocessor.blank()]
        inputs[modality] = {name: torch.stack([e[name] for e in present]) for name in present[0]}
        presence[modality] = torch.tensor([entry is not None for entry in found])
    return ItemBatch(
        rows_n=torch.as_tensor(np.asarray(rows, np.int64)), inputs=inputs, presence=presence
    )
