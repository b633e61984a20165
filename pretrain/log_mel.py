"""Waves → log-mel spectrograms, by PyTorch operations on the device of the tower.

Two kinds, as the pre-trained towers were trained on: Whisper's and Kaldi's (AST). Both take 25 ms
frames every 10 ms at 16 kHz. Shapes: p clips, W samples, R frames, K FFT bins, C mel channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

FRAME, HOP = 400, 160
KALDI_FFT = 512
KALDI_FLOOR = 1.192092955078125e-07
"""Smallest float32 step at 1, below which Kaldi takes no logarithm."""


def _slaney_mel(hertz: Tensor) -> Tensor:
    """Linear below 1 kHz, logarithmic above (Slaney's Auditory Toolbox)."""
    above = 15.0 + (hertz.clamp(min=1000.0) / 1000.0).log() * (27.0 / math.log(6.4))
    return torch.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def _slaney_hertz(mel: Tensor) -> Tensor:
    above = 1000.0 * ((mel - 15.0) * (math.log(6.4) / 27.0)).exp()
    return torch.where(mel < 15.0, mel * 200.0 / 3.0, above)


def _kaldi_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * (1.0 + hertz / 700.0).log()


def mel_filters(num_mels: int, *, sample_rate: int, kind: Literal["whisper", "kaldi"]) -> Tensor:
    """Triangles [K, C] that sum a power spectrum into mel channels.

    `whisper`: Slaney's scale from 0 Hz, triangles in hertz, each of area 1. `kaldi`: the HTK
    scale from 20 Hz, triangles in mel, each of height 1.
    """
    nyquist = sample_rate / 2
    num_bins = (FRAME if kind == "whisper" else KALDI_FFT) // 2 + 1
    hertz_K = torch.linspace(0, nyquist, num_bins, dtype=torch.float64)
    if kind == "whisper":
        edges = torch.tensor([0.0, nyquist], dtype=torch.float64)
        low, high = _slaney_mel(edges).tolist()
        corner = _slaney_hertz(torch.linspace(low, high, num_mels + 2, dtype=torch.float64))
        place_K = hertz_K
    else:
        low, high = _kaldi_mel(torch.tensor([20.0, nyquist], dtype=torch.float64)).tolist()
        corner = torch.linspace(low, high, num_mels + 2, dtype=torch.float64)
        place_K = _kaldi_mel(hertz_K)
    left_C, middle_C, right_C = corner[:-2], corner[1:-1], corner[2:]
    rise_KC = (place_K[:, None] - left_C) / (middle_C - left_C)
    fall_KC = (right_C - place_K[:, None]) / (right_C - middle_C)
    filters_KC = torch.minimum(rise_KC, fall_KC).clamp(min=0)
    if kind == "whisper":
        filters_KC = filters_KC * 2.0 / (right_C - left_C)
    return filters_KC.float()


def whisper_log_mel(wave_pW: Tensor, filters_KC: Tensor) -> Tensor:
    """[p, C, W / 160] as Whisper reads it (Radford et al. 2022, section 2.2)."""
    window = torch.hann_window(FRAME, device=wave_pW.device)
    spectrum = torch.stft(wave_pW.float(), FRAME, HOP, window=window, return_complex=True)
    power_pKR = spectrum[..., :-1].abs().square()
    log_pCR = (filters_KC.T @ power_pKR).clamp(min=1e-10).log10()
    top_p11 = log_pCR.amax(dim=(1, 2), keepdim=True)
    scaled_pCR: Tensor = (torch.maximum(log_pCR, top_p11 - 8.0) + 4.0) / 4.0
    return scaled_pCR


def kaldi_log_mel(wave_pW: Tensor, filters_KC: Tensor) -> Tensor:
    """[p, R, C]: Kaldi's filter bank with a Hann window, no dither, frames that fit whole."""
    frame_pRF = wave_pW.float().unfold(1, FRAME, HOP)
    frame_pRF = frame_pRF - frame_pRF.mean(-1, keepdim=True)
    before_pRF = torch.cat([frame_pRF[..., :1], frame_pRF[..., :-1]], dim=-1)
    frame_pRF = frame_pRF - 0.97 * before_pRF
    window = torch.hann_window(FRAME, periodic=False, device=wave_pW.device)
    power_pRK = torch.fft.rfft(frame_pRF * window, KALDI_FFT).abs().square()
    log_pRC: Tensor = (power_pRK @ filters_KC).clamp(min=KALDI_FLOOR).log()
    return log_pRC
