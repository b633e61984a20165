"""Towers of sound: raw waves in, features out; the spectrogram is made on the tower's device.

Shapes: p clips, W samples of the longest, R frames, C mel channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.backbone import Backbone, TowerConfig
from pretrain.log_mel import FRAME, HOP, kaldi_log_mel, mel_filters, whisper_log_mel

CONV_MELS = 64
CONV_WIDTHS = (32, 64, 128)
AST_MEAN, AST_STD = -4.2677393, 4.5689974
"""Mean and spread of AudioSet's log-mel values, by which AST's inputs are scaled."""


def mean_within(hidden_pRF: Tensor, length_p: Tensor) -> Tensor:
    """Mean of the first `length_p` frames (at least one) of each clip, [p, F]."""
    length_p = length_p.clamp(min=1, max=hidden_pRF.shape[1])
    inside_pR = torch.arange(hidden_pRF.shape[1], device=length_p.device) < length_p[:, None]
    weight_pR = inside_pR.to(hidden_pRF.dtype) / length_p[:, None]
    return (hidden_pRF * weight_pR[..., None]).sum(1)


def fitted(wave_pW: Tensor, samples: int) -> Tensor:
    """Cut to `samples`, or padded with silence."""
    return F.pad(wave_pW[:, :samples], (0, max(0, samples - wave_pW.shape[1])))


def sixteen_khz(config: TowerConfig) -> None:
    """Refuse another sample rate than the frames of `log_mel.py` are made for.

    Raises:
        ValueError: another rate.
    """
    if config.sample_rate != 16_000:
        raise ValueError(
            f"tower {config.name or config.library}: sample_rate is {config.sample_rate}, this "
            "tower reads 16000; leave it out"
        )


class ConvSound(Backbone):
    """Three strided convolutions over a log-mel spectrogram: small, and trained from nothing."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        sixteen_khz(config)
        self.filters_KC: Tensor
        with torch.device("cpu"):  # a release is first built without memory
            filters = mel_filters(CONV_MELS, sample_rate=config.sample_rate, kind="whisper")
        self.register_buffer("filters_KC", filters, persistent=False)
        layers: list[nn.Module] = []
        for before, after in zip((1, *CONV_WIDTHS[:-1]), CONV_WIDTHS, strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.width = CONV_WIDTHS[-1]

    def forward(self, **inputs: Tensor) -> Tensor:
        """`waves` [p, W] at 16 kHz and `lengths` [p] in samples → [p, 128]."""
        wave_pW = fitted(inputs["waves"], max(inputs["waves"].shape[1], 2 * FRAME))
        mel_pCR = whisper_log_mel(wave_pW, self.filters_KC)
        maps = self.layers(mel_pCR[:, None].to(self.layers[0].weight.dtype))  # type: ignore[arg-type]
        frames_p = -(-inputs["lengths"] // (HOP * 2 ** len(CONV_WIDTHS)))
        return mean_within(maps.mean(2).transpose(1, 2), frames_p)


class TransformersSound(Backbone):
    """A transformers audio encoder: Whisper's, AST, or one that reads raw waves (Wav2Vec2, …)."""

    def __init__(self, model: Any, tower: TowerConfig) -> None:  # noqa: ANN401 - any transformers model
        super().__init__()
        self.settings = model.config
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.width = getattr(model.config, "d_model", None) or model.config.hidden_size
        self.kind = model.config.model_type
        sixteen_khz(tower)
        mel = {"whisper": "whisper", "audio-spectrogram-transformer": "kaldi"}.get(self.kind)
        self.filters_KC: Tensor | None
        filters = None
        if mel is not None:
            with torch.device("cpu"):
                filters = mel_filters(model.config.num_mel_bins, sample_rate=16_000, kind=mel)  # type: ignore[arg-type]
        self.register_buffer("filters_KC", filters, persistent=False)
        if getattr(self.model, "masked_spec_embed", None) is not None:
            # A parameter that not every forward pass uses stops DDP.
            self.model.masked_spec_embed = None
            self.settings.mask_time_prob = self.settings.mask_feature_prob = 0.0

    def forward(self, **inputs: Tensor) -> Tensor:
        """`waves` [p, W] at 16 kHz and `lengths` [p] in samples → [p, F]."""
        dtype = next(self.model.parameters()).dtype
        wave_pW, length_p = inputs["waves"], inputs["lengths"]
        if self.kind == "whisper":
            assert self.filters_KC is not None
            # Two strides of the encoder lie between its inputs and its positions.
            samples = 2 * self.settings.max_source_positions * HOP
            mel_pCR = whisper_log_mel(fitted(wave_pW, samples), self.filters_KC)
            hidden = self.model(mel_pCR.to(dtype)).last_hidden_state
            return mean_within(hidden, -(-length_p // (2 * HOP)))
        if self.kind == "audio-spectrogram-transformer":
            assert self.filters_KC is not None
            frames = self.settings.max_length
            wave_pW = fitted(wave_pW, max(FRAME, min(wave_pW.shape[1], frames * HOP + FRAME)))
            mel_pRC = kaldi_log_mel(wave_pW, self.filters_KC)[:, :frames]
            # What lies wholly after a clip is blank for AST, not the logarithm of silence.
            count_p = ((length_p - FRAME) // HOP + 1).clamp(min=1)
            inside_pR = torch.arange(mel_pRC.shape[1], device=length_p.device) < count_p[:, None]
            mel_pRC = mel_pRC * inside_pR[..., None]
            mel_pRC = F.pad(mel_pRC, (0, 0, 0, frames - mel_pRC.shape[1]))
            scaled = (mel_pRC - AST_MEAN) / (2 * AST_STD)
            pooled: Tensor = self.model(scaled.to(dtype)).pooler_output
            return pooled
        count_p1 = length_p.clamp(min=1)[:, None]
        inside_pW = torch.arange(wave_pW.shape[1], device=length_p.device) < count_p1
        mean_p1 = (wave_pW * inside_pW).sum(1, keepdim=True) / count_p1
        centred_pW = (wave_pW - mean_p1) * inside_pW
        spread_p1 = (centred_pW.square().sum(1, keepdim=True) / count_p1 + 1e-7).sqrt()
        hidden = self.model((centred_pW / spread_p1).to(dtype)).last_hidden_state
        return mean_within(hidden, self.model._get_feat_extract_output_lengths(length_p))

    def architecture(self) -> dict[str, Any]:
        """The transformers config, whole."""
        return {"transformers_config": self.settings.to_dict()}
