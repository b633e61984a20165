"""A picture as it came to the JPEG that is stored and its perceptual hash, or the reason why not.

The size is read from the header first, so that a picture of 100 megapixels costs nothing.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.settings import PictureConfig

if TYPE_CHECKING:
    from PIL import Image

Cause = Literal["not_decodable", "over_pixel_limit"]

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What is tried; Pillow knows more, some of which start other programs."""
ORIENTATION_TAG = 0x0112
HASH_SIDE = 32


@dataclass(frozen=True)
class Picture:
    """A picture ready to be stored."""

    jpeg: bytes
    perceptual_hash: int
    """64 bits; similar pictures differ in few of them."""


def prepare_picture(payload: bytes, settings: PictureConfig) -> Picture | Cause:
    """A JPEG upright and of a short side of at most `short_side`, or the cause of refusal.

    A JPEG that is so already passes through unchanged, once it is known to decode. Of several
    frames the first is taken, transparency becomes white, 16 bits become 8.
    """
    from PIL import Image

    # Our own limit is checked right below, before any pixel is decoded.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(payload), formats=_known_formats()) as picture:
            if picture.width * picture.height > settings.max_megapixels * 1e6:
                return "over_pixel_limit"
            small = min(picture.size) <= settings.short_side
            upright = picture.getexif().get(ORIENTATION_TAG, 1) == 1
            plain = picture.format == "JPEG" and picture.mode in ("RGB", "L")
            if small and upright and plain and (kept := _as_it_is(payload)) is not None:
                return kept
            return _encode(picture, settings)
    except Exception:  # decoders meet any bytes and raise anything; the cause is counted
        return "not_decodable"


def perceptual_hash(grey: "Image.Image") -> int:
    """The signs of the 64 lowest frequencies around their median (Zauner 2010, section 3.2.1).

    In integers, so that every machine finds the same bits.
    """
    from PIL import Image

    small = grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.int64)
    cosines = _cosines()
    low = (cosines @ pixels @ cosines.T).ravel()
    bits = low > np.sort(low)[len(low) // 2]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> NDArray[np.int64]:
    """The eight lowest rows of the DCT-II of length 32, in 12-bit fixed point."""
    angles = np.outer(np.arange(8), np.arange(HASH_SIDE) + 0.5) * np.pi / HASH_SIDE
    return np.round(np.cos(angles) * 4096).astype(np.int64)


@cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _as_it_is(payload: bytes) -> Picture | None:
    """The JPEG itself if libjpeg decodes it without a warning; else it is encoded anew."""
    import simplejpeg
    from PIL import Image

    try:
        # At the smallest scale: every coefficient is read, few pixels are made.
        grey = simplejpeg.decode_jpeg(
            payload, "GRAY", min_height=HASH_SIDE, min_width=HASH_SIDE, min_factor=8, strict=True
        )
    except ValueError:
        return None
    return Picture(payload, perceptual_hash(Image.fromarray(grey[:, :, 0])))


def _encode(picture: "Image.Image", settings: PictureConfig) -> Picture:
    from PIL import Image, ImageOps

    side = settings.short_side
    scale = side / min(picture.size)
    if scale < 1:
        # JPEG decodes at a fraction of its size; twice the target keeps the resampling good.
        wanted = (round(picture.width * scale * 2), round(picture.height * scale * 2))
        picture.draft("RGB", wanted)
    rgb = _to_rgb(ImageOps.exif_transpose(picture))
    scale = side / min(rgb.size)
    if scale < 1:
        size = (max(round(rgb.width * scale), side), max(round(rgb.height * scale), side))
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=settings.jpeg_quality)
    return Picture(buffer.getvalue(), perceptual_hash(rgb.convert("L")))


def _to_rgb(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion clips 8
        high = np.asarray(picture).astype(np.int64).clip(0, 0xFFFF) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        picture = Image.alpha_composite(white, layered)
    return picture.convert("RGB")
