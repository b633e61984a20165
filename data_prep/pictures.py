"""A picture as it came to the JPEG that is stored, or the reason why not.

The size is read from the header first, so that a picture of 100 megapixels costs nothing.
"""

import io
from typing import TYPE_CHECKING, Literal

from data_prep.settings import PictureConfig

if TYPE_CHECKING:
    from PIL import Image

Cause = Literal["not_decodable", "over_pixel_limit", "file_missing"]

ORIENTATION_TAG = 0x0112


def prepare_picture(payload: bytes, settings: PictureConfig) -> bytes | Cause:
    """JPEG bytes of a short side of at most `short_side`, or the cause of refusal.

    An RGB JPEG that is small enough passes through unchanged, once it is known to decode.
    """
    from PIL import Image

    # Our own limit is checked right below, before any pixel is decoded.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            if picture.width * picture.height > settings.max_megapixels * 1e6:
                return "over_pixel_limit"
            small = min(picture.size) <= settings.short_side
            upright = picture.getexif().get(ORIENTATION_TAG, 1) == 1
            plain = picture.format == "JPEG" and picture.mode == "RGB"
            if small and upright and plain and _is_clean(payload):
                return payload
            return _encode(picture, settings)
    except Exception:  # decoders meet any bytes and raise anything; the cause is counted
        return "not_decodable"


def _is_clean(payload: bytes) -> bool:
    """Whether libjpeg decodes it without a warning; what it warns of is encoded anew."""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(payload, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError:
        return False
    return True


def _encode(picture: "Image.Image", settings: PictureConfig) -> bytes:
    from PIL import Image, ImageOps

    side = settings.short_side
    scale = side / min(picture.size)
    if scale < 1:
        # JPEG decodes at a fraction of its size; twice the target keeps the resampling good.
        wanted = (round(picture.width * scale * 2), round(picture.height * scale * 2))
        picture.draft("RGB", wanted)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        upright = Image.alpha_composite(white, layered)
    rgb = upright.convert("RGB")
    scale = side / min(rgb.size)
    if scale < 1:
        size = (max(round(rgb.width * scale), side), max(round(rgb.height * scale), side))
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=settings.jpeg_quality)
    return buffer.getvalue()
