import io
import resource
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from data_prep.pictures import Picture, prepare_picture
from data_prep.settings import PictureConfig

SETTINGS = PictureConfig(short_side=48)


def encode(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def decode(picture: object) -> Image.Image:
    assert isinstance(picture, Picture)
    return Image.open(io.BytesIO(picture.jpeg))


def photo(seed: int, size: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def hash_of(payload: bytes) -> int:
    found = prepare_picture(payload, SETTINGS)
    assert isinstance(found, Picture)
    return found.perceptual_hash


def test_a_small_jpeg_passes_through_byte_for_byte(make_jpeg: Callable[..., bytes]) -> None:
    for payload in (make_jpeg(48, 90), make_jpeg(48, 90, mode="L")):
        found = prepare_picture(payload, SETTINGS)
        assert isinstance(found, Picture)
        assert found.jpeg is payload


@pytest.mark.parametrize(("size", "expected"), [((480, 960), (48, 96)), ((100, 50), (96, 48))])
def test_a_large_picture_is_shrunk_to_the_short_side(
    make_jpeg: Callable[..., bytes], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert decode(prepare_picture(make_jpeg(*size), SETTINGS)).size == expected


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(
    make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def note(picture: Image.Image) -> Image.Image:
        decoded.append(picture.size)
        return picture

    monkeypatch.setattr("data_prep.pictures._to_rgb", note)
    assert decode(prepare_picture(make_jpeg(1600, 1200), SETTINGS)).size == (64, 48)
    assert decoded == [(200, 150)]  # an eighth, the least that is twice the target


def test_a_picture_lying_on_its_side_is_put_upright() -> None:
    picture = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = decode(prepare_picture(encode(picture, "JPEG", exif=exif), SETTINGS))
    assert stored.size == (20, 40)
    assert stored.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *[("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("1", "PNG"), ("CMYK", "JPEG")],
        *[("CMYK", "TIFF"), ("RGB", "BMP"), ("RGBA", "WEBP"), ("RGB", "PPM")],
    ],
)
def test_other_formats_and_modes_become_rgb_jpeg(mode: str, format: str) -> None:
    stored = decode(prepare_picture(encode(Image.new(mode, (30, 30)), format), SETTINGS))
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (30, 30))


def test_sixteen_bits_become_the_upper_eight() -> None:
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    stored = np.asarray(decode(prepare_picture(encode(Image.fromarray(values), "PNG"), SETTINGS)))
    np.testing.assert_allclose(stored[..., 0], values >> 8, atol=6)


def test_the_same_picture_in_another_format_or_size_has_nearly_the_same_hash() -> None:
    first = hash_of(encode(photo(1), "JPEG", quality=90))
    for payload in (
        encode(photo(1), "PNG"),
        encode(photo(1), "JPEG", quality=60),
        encode(photo(1, size=480), "WEBP"),
    ):
        assert (first ^ hash_of(payload)).bit_count() <= 4
    assert (first ^ hash_of(encode(photo(2), "PNG"))).bit_count() > 16


def test_formats_that_start_other_programs_are_not_tried() -> None:
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n"
    assert prepare_picture(drawing, SETTINGS) == "not_decodable"


def test_what_is_transparent_becomes_white() -> None:
    clear = encode(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG")
    assert min(decode(prepare_picture(clear, SETTINGS)).getpixel((10, 10))) > 250


def test_the_pixel_limit_is_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (12_000, 10_000)), "PNG")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert prepare_picture(bomb, SETTINGS) == "over_pixel_limit"


def with_size(payload: bytes, format: str, *, width: int, height: int) -> bytes:
    """A picture whose header claims another size; what follows no longer fits it."""
    changed = bytearray(payload)
    match format:
        case "JPEG":
            at = payload.index(b"\xff\xc0") + 5
            changed[at : at + 4] = struct.pack(">HH", height, width)
        case "PNG":
            changed[16:24] = struct.pack(">II", width, height)
            changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
        case "WEBP":
            at = payload.index(b"\x9d\x01\x2a") + 3
            changed[at : at + 4] = struct.pack("<HH", width, height)
        case "AVIF":
            at = payload.index(b"ispe") + 8
            changed[at : at + 8] = struct.pack(">II", width, height)
        case "GIF":
            changed[6:10] = struct.pack("<HH", width, height)
        case "BMP":
            changed[18:26] = struct.pack("<ii", width, height)
        case "TIFF":
            for tag, value in ((256, width), (257, height)):
                at = payload.index(struct.pack("<HHI", tag, 4, 1)) + 8
                changed[at : at + 4] = struct.pack("<I", value)
        case "PPM":
            return payload.replace(b"P6\n30 30", b"P6\n%d %d" % (width, height))
    return bytes(changed)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"])
def test_a_bomb_of_any_format_is_refused_by_its_header(format: str) -> None:
    payload = encode(Image.new("RGB", (30, 30), "red"), format)
    bomb = with_size(payload, format, width=16_000, height=16_000)
    assert bomb != payload
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert prepare_picture(bomb, PictureConfig()) == "over_pixel_limit"
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 100  # its pixels would take 750


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_picture_is_not_decodable(make_jpeg: Callable[..., bytes], share: float) -> None:
    for payload in (make_jpeg(40, 40), make_jpeg(400, 400)):
        cut = payload[: int(len(payload) * share)]
        assert prepare_picture(cut, SETTINGS) == "not_decodable"
