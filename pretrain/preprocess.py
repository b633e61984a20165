"""From items' content to the inputs of their towers, on the CPU, a batch at a time.

Letters: see `batch.py`; p items of the batch that have the modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.records import ItemRecord
from data_prep.settings import TokenConfig
from data_prep.tokens import OPEN_CLIP, encode_texts, join_texts, resolve_package
from pretrain.batch import ItemBatch
from pretrain.buffers import BufferPool
from pretrain.sound_decoding import SoundPreprocessor
from pretrain.towers import TowerConfig

MAX_PIXELS = 50_000_000
CLIP_PADDING = 0

Pixels = NDArray[np.uint8]
Jpeg = bytes | memoryview
Inputs = tuple[dict[str, Tensor], Tensor]
"""Named inputs of the p items that have the modality (of one blank item where none has it: every
rank then runs every tower in every step, as DDP and ZeRO ask), and bool [n]: which have it."""


def decode_picture(jpeg: Jpeg, out_HWC: Pixels, *, fit: str) -> None:
    """Decode a JPEG to the size of `out_HWC`, [size, size, 3] uint8.

    A JPEG of another size is decoded at the smallest DCT scale that is still at least as large,
    then resized (bicubic, antialiased).

    Raises:
        ValueError: no JPEG, or one of more pixels than `MAX_PIXELS`; found in the header, before
            anything is decoded.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise ValueError(
            f"picture of {len(jpeg)} bytes: found no JPEG ({error}); "
            "data_prep.pictures.prepare_picture makes one of other formats"
        ) from error
    if height * width > MAX_PIXELS:
        raise ValueError(f"picture: found {width} x {height} pixels, at most {MAX_PIXELS} are read")
    size = len(out_HWC)
    if height == width == size:
        simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out_HWC)
        return
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=size, min_width=size)
    if fit == "crop":
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], size, mode="bicubic", antialias=True
    )
    out_HWC[:] = resized[0].permute(1, 2, 0).numpy()


class PicturePreprocessor:
    """Pictures → `pixels` uint8 [p, 3, size, size]; normalising is the tower's, on its device."""

    def __init__(self, config: TowerConfig, *, threads: int = 1) -> None:
        self.config = config
        self._buffers = BufferPool()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def batch(self, pictures: Sequence[Jpeg | Pixels | None]) -> Inputs:
        """Inputs of n items: JPEGs, pictures decoded before, None where there is none."""
        size = self.config.image_size
        found = [picture for picture in pictures if picture is not None]
        pixels_pHWC = self._buffers.take((max(1, len(found)), size, size, 3))
        if not found:
            pixels_pHWC[:] = 0
        run = map if self._pool is None else self._pool.map
        for _ in run(self._decode, found, pixels_pHWC):
            pass
        return {"pixels": torch.from_numpy(pixels_pHWC).permute(0, 3, 1, 2)}, _presence(pictures)

    def _decode(self, picture: Jpeg | Pixels, out_HWC: Pixels) -> None:
        if isinstance(picture, np.ndarray):
            out_HWC[:] = picture
        else:
            decode_picture(picture, out_HWC, fit=self.config.fit)

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""


class FramesPreprocessor:
    """Several pictures an item → `pixels` uint8 [f, 3, size, size], and `item` [f], its owner."""

    def __init__(self, config: TowerConfig, *, threads: int = 1) -> None:
        self.config = config
        self._pictures = PicturePreprocessor(config, threads=threads)

    def chosen(self, count: int) -> list[int]:
        """Which of an item's `count` frames are read: at most `max_frames`, evenly spread."""
        read = min(count, self.config.max_frames)
        return [(2 * place + 1) * count // (2 * read) for place in range(read)]

    def batch(self, frames: Sequence[Sequence[Jpeg]]) -> Inputs:
        """Inputs of n items' chosen frames, empty where there are none."""
        flat = [frame for one in frames for frame in one]
        inputs, _ = self._pictures.batch(flat)
        counts = [len(one) for one in frames if one] or [1]
        inputs["item"] = torch.repeat_interleave(torch.tensor(counts))
        return inputs, torch.tensor([bool(one) for one in frames])

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""


class TextPreprocessor:
    """Title, description, … joined → `tokens` and `attention`, int64 [p, max_tokens]."""

    def __init__(
        self, config: TowerConfig, *, fields: Sequence[str], tokenizer_dir: Path | None = None
    ) -> None:
        self.config = config
        self.fields = tuple(fields)
        self.padding = CLIP_PADDING
        self._tokenizer: Any = None
        if config.library != OPEN_CLIP:
            from transformers import AutoTokenizer

            source = tokenizer_dir or resolve_package(config.name)
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            except Exception as error:  # the library meets any files, and raises anything
                raise ValueError(
                    f"{source}: holds no tokenizer that can be read ({type(error).__name__}: "
                    f"{str(error)[:300]}); correct the tower's name, or copy the release anew"
                ) from error
            self.padding = self._tokenizer.pad_token_id

    def join(self, texts: Mapping[str, str]) -> str:
        """The item's texts in the order of the dataset's fields, empty where it has none."""
        return join_texts(texts, self.fields)

    def batch(self, texts: Sequence[str]) -> Inputs:
        """Inputs of n items' joined texts, empty where there is none."""
        found = [text for text in texts if text] or ["-"]
        length = self.config.max_tokens
        if self._tokenizer is None:
            ids = encode_texts(found, TokenConfig(tokenizer=OPEN_CLIP, max_tokens=length))
        else:
            ids = self._tokenizer(found, truncation=True, max_length=length)["input_ids"]
        counts_p = np.fromiter(map(len, ids), np.int64, len(ids))
        tokens_pT = np.full((len(ids), length), self.padding, np.int64)
        tokens_pT[np.arange(length) < counts_p[:, None]] = np.concatenate(ids)
        presence_n = torch.tensor([bool(text) for text in texts])
        return self._inputs(tokens_pT, counts_p), presence_n

    def from_ids(self, tokens_nT: NDArray[np.int64], counts_n: NDArray[np.int64]) -> Inputs:
        """Inputs of n items' ids as they were made at shard time, counted, then padded."""
        present = counts_n > 0
        if not present.any():
            return self.batch([""] * len(counts_n))
        return self._inputs(tokens_nT[present], counts_n[present]), torch.from_numpy(present)

    def _inputs(
        self, tokens_pT: NDArray[np.int64], counts_p: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        attention_pT = (np.arange(tokens_pT.shape[1]) < counts_p[:, None]).astype(np.int64)
        return {"tokens": torch.from_numpy(tokens_pT), "attention": torch.from_numpy(attention_pT)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer; open_clip's is part of that package."""
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)


class VectorPreprocessor:
    """Given vectors → `vector` float32 [p, F]."""

    def __init__(self, name: str, *, width: int) -> None:
        self.name = name
        self.width = width

    def batch(self, vectors: Sequence[NDArray[np.float32] | None]) -> Inputs:
        """Inputs of n items, None where there is no such vector."""
        found = [vector for vector in vectors if vector is not None]
        stacked = np.stack(found) if found else np.zeros((1, self.width))
        return {"vector": torch.from_numpy(stacked.astype(np.float32))}, _presence(vectors)

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""


Preprocessor = (
    PicturePreprocessor
    | FramesPreprocessor
    | SoundPreprocessor
    | TextPreprocessor
    | VectorPreprocessor
)


def _presence(content: Sequence[object]) -> Tensor:
    return torch.tensor([one is not None for one in content])


def build_preprocessors(
    towers: Mapping[str, TowerConfig],
    *,
    text_fields: Sequence[str],
    vector_widths: Mapping[str, int],
    tokenizer_dir: Path | None = None,
    threads: int = 1,
) -> dict[str, Preprocessor]:
    """One preprocessor a tower, by modality; `threads` decode pictures and sound."""
    text = partial(TextPreprocessor, fields=text_fields, tokenizer_dir=tokenizer_dir)
    built: dict[str, Preprocessor] = {}
    for modality, config in towers.items():
        if config.library == "given":
            built[modality] = VectorPreprocessor(modality, width=vector_widths[modality])
        elif modality == "image":
            built[modality] = PicturePreprocessor(config, threads=threads)
        elif modality == "frames":
            built[modality] = FramesPreprocessor(config, threads=threads)
        elif modality == "sound":
            built[modality] = SoundPreprocessor(config, threads=threads)
        else:
            built[modality] = text(config)
    return built


def prepare_records(
    records: Sequence[ItemRecord], preprocessors: Mapping[str, Preprocessor]
) -> ItemBatch:
    """Items that lie in memory → one batch; their rows are their places."""
    inputs: dict[str, dict[str, Tensor]] = {}
    presence: dict[str, Tensor] = {}
    for name, one in preprocessors.items():
        if isinstance(one, PicturePreprocessor):
            made = one.batch([record.image for record in records])
        elif isinstance(one, FramesPreprocessor):
            made = one.batch(
                [[each.frames[k] for k in one.chosen(len(each.frames))] for each in records]
            )
        elif isinstance(one, SoundPreprocessor):
            made = one.batch([record.sound for record in records])
        elif isinstance(one, TextPreprocessor):
            made = one.batch([one.join(record.texts) for record in records])
        else:
            made = one.batch([record.vectors.get(name) for record in records])
        inputs[name], presence[name] = made
    return ItemBatch(rows_n=torch.arange(len(records)), inputs=inputs, presence=presence)
