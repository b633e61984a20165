"""Sound clips → waves of one sample rate, on the CPU; the spectrogram is made by the tower.

Shapes: n items, p of them with sound, W samples of the longest clip.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor

from data_prep.sounds import MAX_RATE
from pretrain.backbone import TowerConfig
from pretrain.buffers import BufferPool

SHORTEST_S = 0.1
"""Batches are at least this long, so that every tower finds a frame in them."""

Wave = NDArray[np.float32]


def decode_sound(clip: bytes | memoryview, *, sample_rate: int, max_seconds: float) -> Wave:
    """Decode the first `max_seconds` of a WAV, FLAC, Ogg or MP3 file: one channel, float32 [W].

    Raises:
        ValueError: no such file.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(clip)) as file:
            rate = file.samplerate
            if rate > MAX_RATE:
                raise ValueError(f"sound: found {rate} Hz, at most {MAX_RATE} are read")
            wave = file.read(math.ceil(max_seconds * rate), dtype="float32", always_2d=True).mean(1)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"sound of {len(clip)} bytes: cannot be decoded ({error}); data_prep keeps WAV, FLAC, "
            "Ogg and MP3 that it could decode"
        ) from error
    if rate != sample_rate:
        common = math.gcd(rate, sample_rate)
        wave = resample_poly(wave, sample_rate // common, rate // common)
    return np.ascontiguousarray(wave[: round(max_seconds * sample_rate)], dtype=np.float32)


class SoundPreprocessor:
    """Clips → `waves` float32 [p, W], silent after their ends, and `lengths` int64 [p]."""

    def __init__(self, config: TowerConfig, *, threads: int = 1) -> None:
        self.config = config
        self._buffers = BufferPool()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def batch(self, clips: Sequence[bytes | memoryview | None]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of n items' clips, None where there is none."""
        run = map if self._pool is None else self._pool.map
        waves = list(run(self._decode, (clip for clip in clips if clip is not None)))
        waves = waves or [np.zeros(0, np.float32)]
        lengths_p = torch.tensor([len(wave) for wave in waves])
        longest = max(int(lengths_p.max()), round(SHORTEST_S * self.config.sample_rate))
        wave_pW = torch.from_numpy(self._buffers.take((len(waves), 4 * longest)))
        wave_pW = wave_pW.view(torch.float32)
        for row, wave in zip(wave_pW, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
            row[len(wave) :] = 0
        presence_n = torch.tensor([clip is not None for clip in clips])
        return {"waves": wave_pW, "lengths": lengths_p}, presence_n

    def _decode(self, clip: bytes | memoryview) -> Wave:
        return decode_sound(
            clip, sample_rate=self.config.sample_rate, max_seconds=self.config.max_seconds
        )

    def save(self, folder: Path) -> None:
        """Nothing beyond the config."""
