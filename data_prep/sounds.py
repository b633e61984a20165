"""A sound clip that is known to decode, kept as the file it came as, or the reason why not."""

import io
from dataclasses import dataclass
from typing import Literal

from data_prep.settings import SoundConfig

Cause = Literal["not_decodable", "over_length_limit", "over_rate_limit"]

SUFFIXES = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
"""libsndfile's names of formats to suffixes of tar members."""
BLOCK_FRAMES = 65_536
MAX_RATE = 384_000
"""Hertz, the most that recorders offer. A header may claim any; the filter that resamples a clip in
training grows with it, to 300 GB at 2 GHz."""


@dataclass(frozen=True)
class Sound:
    """A clip ready to be stored."""

    payload: bytes
    suffix: str


def prepare_sound(payload: bytes, settings: SoundConfig) -> Sound | Cause:
    """The clip unchanged, or the cause of refusal: a length or rate over the limit, or no sound."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as clip:
            suffix = SUFFIXES[clip.format]
            if clip.samplerate > MAX_RATE:
                return "over_rate_limit"
            limit = settings.max_seconds * clip.samplerate
            if clip.frames > limit:  # of the header; below it is counted
                return "over_length_limit"
            frames = 0
            while (block := clip.read(BLOCK_FRAMES, dtype="float32", always_2d=True)).size:
                frames += len(block)
                if frames > limit:
                    return "over_length_limit"
    except Exception:  # decoders meet any bytes and raise anything; the cause is counted
        return "not_decodable"
    return Sound(payload, suffix) if frames else "not_decodable"
