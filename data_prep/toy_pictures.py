"""Drawings of the toy world's items: one shape, in one colour, with one texture.

Letters: n pictures, S side in pixels.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHAPES = ("disc", "square", "triangle", "diamond", "ring", "cross", "bar", "crescent")
COLOURS = ("red", "orange", "lime", "green", "teal", "blue", "violet", "pink")
TEXTURES = ("plain", "rows", "columns", "checks", "dots", "slant")
SIDE = 64
JPEG_QUALITY = 85


def _distances(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to the outline, positive inside; x and y [n, S, S], the shape of radius 1."""
    radius = np.hypot(x, y)
    ax, ay = np.abs(x), np.abs(y)
    match shape:
        case "disc":
            inside = 1 - radius
        case "square":
            inside = 0.85 - np.maximum(ax, ay)
        case "triangle":
            inside = np.minimum(y + 0.7, 0.9 - 0.87 * ax - 0.5 * (y + 0.5) * 1.1)
        case "diamond":
            inside = (1.1 - ax - ay) * 0.7
        case "ring":
            inside = 0.28 - np.abs(radius - 0.75)
        case "cross":
            inside = np.minimum(1 - np.maximum(ax, ay), 0.32 - np.minimum(ax, ay))
        case "bar":
            inside = np.minimum(0.35 - ay, 1.15 - ax)
        case "crescent":
            inside = np.minimum(1 - radius, np.hypot(x - 0.5, y) - 0.75)
        case _:
            raise ValueError(f"shape: found {shape!r}, expected one of {SHAPES}")
    return np.asarray(inside, dtype=np.float32)


def _shade(texture: str, x: Array, y: Array, pitch: Array) -> Array:
    """How bright the surface is, 0 or 1 in most places; x, y [n, S, S], pitch [n, 1, 1]."""
    wave_x, wave_y = np.sin(pitch * x), np.sin(pitch * y)
    match texture:
        case "plain":
            shade = np.ones_like(x, dtype=bool)
        case "rows":
            shade = wave_y > 0
        case "columns":
            shade = wave_x > 0
        case "checks":
            shade = wave_x * wave_y > 0
        case "dots":
            shade = wave_x + wave_y < 0.9
        case "slant":
            shade = np.sin(pitch * (x + y) * 0.7) > 0
        case _:
            raise ValueError(f"texture: found {texture!r}, expected one of {TEXTURES}")
    return np.asarray(shade, dtype=np.float32)


def _surface_rgb(hue_n: Array, value_n: Array) -> Array:
    """RGB [n, 3] of a saturated colour; hue in turns."""
    offsets = np.array([5, 3, 1], dtype=np.float32)
    k = (offsets + hue_n[:, None] * 6) % 6
    rgb: Array = value_n[:, None] * (1 - 0.85 * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def draw_pixels(
    shape_n: NDArray[np.integer],
    colour_n: NDArray[np.integer],
    *,
    texture_n: NDArray[np.integer],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw n pictures [n, S, S, 3]; place, size, hue, pitch and background vary at random."""
    count = len(shape_n)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, count).astype(np.float32)

    axis = np.linspace(-1.5, 1.5, SIDE, dtype=np.float32)
    size, angle = uniform(0.85, 1.2), uniform(-0.15, 0.15)
    left = (axis[None, None, :] - uniform(-0.2, 0.2)[:, None, None]) / size[:, None, None]
    down = (axis[None, :, None] - uniform(-0.2, 0.2)[:, None, None]) / size[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cos * left - sin * down, sin * left + cos * down
    pitch = uniform(11, 14)[:, None, None]

    cover, shade = np.empty_like(x), np.empty_like(x)
    for number, shape in enumerate(SHAPES):
        chosen = shape_n == number
        cover[chosen] = np.clip(_distances(shape, x[chosen], y[chosen]) * 12 + 0.5, 0, 1)
    for number, texture in enumerate(TEXTURES):
        chosen = texture_n == number
        shade[chosen] = _shade(texture, x[chosen], y[chosen], pitch[chosen])
    hue = (colour_n.astype(np.float32) + uniform(-0.25, 0.25)) / np.float32(len(COLOURS))
    surface = _surface_rgb(hue, uniform(0.75, 1.0))[:, None, None, :]
    surface = surface * (0.35 + 0.65 * shade[..., None])
    background = (uniform(0.55, 0.95)[:, None] * rng.uniform(0.9, 1.0, (count, 3)))[:, None, None]
    pixels = cover[..., None] * surface + (1 - cover[..., None]) * background
    pixels += rng.normal(0, 0.02, pixels.shape[:3])[..., None]
    result: NDArray[np.uint8] = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return result


def draw_jpegs(
    shape_n: NDArray[np.integer],
    colour_n: NDArray[np.integer],
    *,
    texture_n: NDArray[np.integer],
    rng: np.random.Generator,
) -> list[bytes]:
    """JPEG bytes of `draw_pixels`."""
    import simplejpeg

    pixels = draw_pixels(shape_n, colour_n, texture_n=texture_n, rng=rng)
    return [
        simplejpeg.encode_jpeg(picture, quality=JPEG_QUALITY, colorspace="RGB")
        for picture in pixels
    ]
