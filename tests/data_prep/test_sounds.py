import io
import struct

import numpy as np
import pytest
import soundfile

from data_prep.settings import SoundConfig
from data_prep.sounds import MAX_RATE, Sound, prepare_sound

RATE = 8000


def clip(format: str, *, seconds: float = 0.5) -> bytes:
    wave = np.sin(np.arange(int(RATE * seconds)) * 0.3).astype(np.float32) * 0.5
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "suffix"), [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")]
)
def test_a_clip_is_kept_as_the_file_it_is(format: str, suffix: str) -> None:
    payload = clip(format)
    assert prepare_sound(payload, SoundConfig()) == Sound(payload, suffix)


def test_a_long_clip_and_what_is_no_sound_are_causes() -> None:
    short = SoundConfig(max_seconds=1)
    assert prepare_sound(clip("FLAC", seconds=2), short) == "over_length_limit"
    assert prepare_sound(clip("FLAC")[:50], short) == "not_decodable"
    assert prepare_sound(b"no sound", short) == "not_decodable"
    assert prepare_sound(clip("WAV", seconds=0), short) == "not_decodable"


@pytest.mark.parametrize("rate", [MAX_RATE + 1, 2_000_000_011])
def test_a_rate_that_no_recorder_has_is_a_cause(rate: int) -> None:
    payload = bytearray(clip("WAV"))
    payload[24:28] = struct.pack("<I", rate)
    assert prepare_sound(bytes(payload), SoundConfig()) == "over_rate_limit"
