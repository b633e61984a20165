"""Sound from a clip's bytes to features, against transformers' own extractors."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.backbone import Backbone, TowerConfig
from pretrain.log_mel import kaldi_log_mel, mel_filters, whisper_log_mel
from pretrain.sound_decoding import SoundPreprocessor, decode_sound
from pretrain.tower_sound import AST_MEAN, AST_STD, mean_within
from pretrain.towers import build_backbone

RATE = 16_000


def tone(hertz: float, *, seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float32]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def clip(wave: NDArray[np.float32], *, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=None if kind == "OGG" else "PCM_16")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_clip_is_decoded_exactly_and_cut(kind: str) -> None:
    wave = tone(440)
    found = decode_sound(clip(wave, kind=kind), sample_rate=RATE, max_seconds=0.3)
    assert len(found) == 0.3 * RATE
    np.testing.assert_allclose(found, wave[: len(found)], atol=1e-4)


def test_another_rate_and_two_channels_become_one_wave_of_ours() -> None:
    stereo = np.stack([tone(440, rate=44_100), tone(440, rate=44_100) / 2], axis=1)
    found = decode_sound(clip(stereo, rate=44_100), sample_rate=RATE, max_seconds=9)
    assert len(found) == 8000
    expected = 0.75 * tone(440)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)


def test_a_rate_that_no_recorder_has_is_refused_before_it_is_resampled() -> None:
    """The filter that resamples grows with it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(100, np.float32), 2_000_000_000, format="WAV")
    with pytest.raises(ValueError, match="found 2000000000 Hz, at most 384000"):
        decode_sound(buffer.getvalue(), sample_rate=16_000, max_seconds=1.0)


def test_no_sound_file_is_refused() -> None:
    with pytest.raises(ValueError, match="sound of 3 bytes: cannot be decoded"):
        decode_sound(b"abc", sample_rate=RATE, max_seconds=1)


def test_a_batch_is_silent_after_each_end_and_its_buffer_is_used_again() -> None:
    made = SoundPreprocessor(TowerConfig(library="conv"))
    for _ in range(2):
        clips = [clip(tone(300)), None, clip(tone(500, seconds=0.2))]
        inputs, presence = made.batch(clips)
        assert presence.tolist() == [True, False, True]
        assert inputs["lengths"].tolist() == [8000, 3200]
        assert inputs["waves"].shape == (2, 8000)
        assert not inputs["waves"][1, 3200:].any()
        np.testing.assert_allclose(inputs["waves"][1, :3200], tone(500, seconds=0.2), atol=1e-4)
        address = inputs["waves"].data_ptr()
        del inputs
        inputs, presence = made.batch([None])
        assert inputs["waves"].data_ptr() == address
        assert not inputs["waves"].any()
        assert not presence.any()
        del inputs


@pytest.mark.parametrize("num_mels", [40, 80, 128])
def test_whispers_spectrogram_is_transformers_own(num_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=1)
    wave = tone(440, seconds=1.0) + tone(3000, seconds=1.0)
    expected = theirs(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
    filters_KC = mel_filters(num_mels, sample_rate=RATE, kind="whisper")
    np.testing.assert_allclose(filters_KC, theirs.mel_filters, atol=1e-6)
    found = whisper_log_mel(torch.from_numpy(wave)[None], filters_KC)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_kaldis_spectrogram_is_transformers_own() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    theirs = mel_filter_bank(
        num_frequency_bins=257, num_mel_filters=128, min_frequency=20, max_frequency=RATE // 2,
        sampling_rate=RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    filters_KC = mel_filters(128, sample_rate=RATE, kind="kaldi")
    np.testing.assert_allclose(filters_KC, theirs, atol=1e-6)
    wave = tone(440) + 0.1 * np.random.default_rng(0).standard_normal(8000)
    expected = spectrogram(
        wave, window_function(400, "hann", periodic=False), frame_length=400, hop_length=160,
        fft_length=512, power=2.0, center=False, preemphasis=0.97, mel_filters=theirs,
        log_mel="log", mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    ).T  # fmt: skip
    found = kaldi_log_mel(torch.from_numpy(wave)[None], filters_KC)[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def configs() -> dict[str, object]:
    from transformers import ASTConfig, Wav2Vec2Config, WhisperConfig

    small = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    return {
        "whisper": WhisperConfig(
            vocab_size=20, num_mel_bins=20, d_model=16, encoder_layers=2, encoder_attention_heads=2,
            decoder_layers=1, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            max_source_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        ),
        "ast": ASTConfig(hidden_size=16, max_length=64, num_mel_bins=32, **small),
        "wav2vec2": Wav2Vec2Config(
            hidden_size=16, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 4),
            num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
            **small,
        ),
    }  # fmt: skip


def tower(kind: str, folder: Path, **settings: object) -> tuple[TowerConfig, Backbone]:
    torch.manual_seed(0)
    if kind == "conv":
        config = TowerConfig(library="conv", **settings)  # type: ignore[arg-type]
    else:
        configs()[kind].save_pretrained(folder)  # type: ignore[attr-defined]
        config = TowerConfig(library="transformers", name=str(folder), **settings)  # type: ignore[arg-type]
    return config, build_backbone("sound", config)


def batch(*waves: NDArray[np.float32]) -> dict[str, Tensor]:
    return SoundPreprocessor(TowerConfig(library="conv")).batch([clip(one) for one in waves])[0]


KINDS = ["conv", "whisper", "ast", "wav2vec2"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_a_clips_own_and_every_parameter_learns(kind: str, tmp_path: Path) -> None:
    config, backbone = tower(kind, tmp_path)
    long, short = tone(440, seconds=0.6), tone(900, seconds=0.3)
    backbone.eval()
    both = backbone(**batch(long, short))
    assert both.shape == (2, backbone.width)
    assert (both[0] - both[1]).abs().max() > 1e-4
    # wav2vec2 normalises over the padding too: its shorter clips know the batch, by its design.
    alone = backbone(**batch(long if kind == "wav2vec2" else short))
    row = 0 if kind == "wav2vec2" else 1
    if kind != "conv":  # GroupNorm sees the silence that follows, so it is near and not equal
        torch.testing.assert_close(alone[0], both[row], rtol=1e-3, atol=1e-4)
    backbone.train()
    backbone(**batch(long, short)).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name

    again = build_backbone("sound", config, saved=backbone.architecture())
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.eval()(**batch(long)), backbone.eval()(**batch(long)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_stand_in_is_finite(kind: str, tmp_path: Path) -> None:
    _, backbone = tower(kind, tmp_path)
    inputs, _ = SoundPreprocessor(TowerConfig(library="conv")).batch([None])
    features = backbone(**inputs)
    assert bool(features.isfinite().all())
    features.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in backbone.parameters())


@pytest.mark.parametrize("kind", ["whisper", "ast", "wav2vec2"])
@pytest.mark.parametrize("train", ["top_k", "lora"])
def test_audio_models_are_tuned_in_part(kind: str, train: str, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft")
    _, backbone = tower(kind, tmp_path, train=train, checkpointing="blocks")
    backbone.train()(**batch(tone(440))).sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(backbone.parameters()))
    assert all(parameter.grad is not None for parameter in trained)


def test_ast_gets_what_its_own_extractor_gives(tmp_path: Path) -> None:
    from transformers import ASTFeatureExtractor

    _, backbone = tower("ast", tmp_path)
    seen: list[Tensor] = []
    backbone.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    # Noise in every channel: a pure tone's rounding to 16 bits would fill the empty ones.
    noise = np.random.default_rng(0).standard_normal(6400)
    wave = tone(440, seconds=0.4) + 0.1 * noise.astype(np.float32)
    backbone(**batch(wave))
    theirs = ASTFeatureExtractor(
        num_mel_bins=32, max_length=64, mean=AST_MEAN, std=AST_STD, sampling_rate=RATE
    )
    expected = theirs(wave, sampling_rate=RATE, return_tensors="pt")["input_values"]
    torch.testing.assert_close(seen[0], expected, atol=2e-2, rtol=0)


def test_a_mean_within_lengths_is_the_plain_one() -> None:
    hidden_pRF = torch.randn(3, 5, 2)
    found = mean_within(hidden_pRF, torch.tensor([2, 5, 9]))
    torch.testing.assert_close(found[0], hidden_pRF[0, :2].mean(0))
    torch.testing.assert_close(found[2], hidden_pRF[2].mean(0))


def test_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_rate is 8000, this tower reads 16000"):
        build_backbone("sound", TowerConfig(library="conv", sample_rate=8000))
