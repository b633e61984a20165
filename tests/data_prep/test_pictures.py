import io
from collections.abc import Callable

import pytest
from PIL import Image

from data_prep.pictures import prepare_picture
from data_prep.settings import PictureConfig

SETTINGS = PictureConfig(short_side=48)


def encode(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def decode(payload: object) -> Image.Image:
    assert isinstance(payload, bytes)
    return Image.open(io.BytesIO(payload))


def test_a_small_jpeg_passes_through_byte_for_byte(make_jpeg: Callable[..., bytes]) -> None:
    payload = make_jpeg(48, 90)
    assert prepare_picture(payload, SETTINGS) is payload


@pytest.mark.parametrize(("size", "expected"), [((480, 960), (48, 96)), ((100, 50), (96, 48))])
def test_a_large_picture_is_shrunk_to_the_short_side(
    make_jpeg: Callable[..., bytes], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert decode(prepare_picture(make_jpeg(*size), SETTINGS)).size == expected


def test_a_picture_lying_on_its_side_is_put_upright() -> None:
    picture = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = decode(prepare_picture(encode(picture, "JPEG", exif=exif), SETTINGS))
    assert stored.size == (20, 40)
    assert stored.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("1", "PNG")]
)
def test_other_formats_and_modes_become_rgb_jpeg(mode: str, format: str) -> None:
    stored = decode(prepare_picture(encode(Image.new(mode, (30, 30)), format), SETTINGS))
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (30, 30))


def test_what_is_transparent_becomes_white() -> None:
    clear = encode(Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG")
    assert min(decode(prepare_picture(clear, SETTINGS)).getpixel((10, 10))) > 250


def test_the_pixel_limit_is_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (12_000, 10_000)), "PNG")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert prepare_picture(bomb, SETTINGS) == "over_pixel_limit"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_picture_is_not_decodable(make_jpeg: Callable[..., bytes], share: float) -> None:
    for payload in (make_jpeg(40, 40), make_jpeg(400, 400)):
        cut = payload[: int(len(payload) * share)]
        assert prepare_picture(cut, SETTINGS) == "not_decodable"
