"""Procedural textures: floors, walls, paintings and what a window shows; all (h, w, 3) sRGB in [0, 1]."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from renderer.geometry import Array

Generator = np.random.Generator


def hsv(hue: float, saturation: float, value: float) -> Array:
    """An sRGB colour (3,) from hue, saturation and value in [0, 1]; the hue wraps."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1)))


def fractal(rng: Generator, height: int, width: int, slope: float = 1.2, stretch: float = 1.0) -> Array:
    """Noise (height, width) that tiles, mean 0 and deviation 1, amplitude falling as frequency^-slope.

    ``stretch`` > 1 draws it out along x, as the grain of wood.
    """
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None] * width * stretch
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * radius**-slope
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return noise / max(noise.std(), 1e-12)


def _grid(rng: Generator, rows: int, columns: int, pixels: int, shift: float) -> tuple[Array, Array, Array]:
    """Bricks or tiles: cell number, and distance in pixels to the joints across and along, each (p, p).

    ``shift`` moves every other row by that part of a brick; ``rows`` must then be even to tile.
    """
    y, x = np.mgrid[:pixels, :pixels] + 0.5
    row = (y * rows / pixels).astype(int)
    along = (x / pixels * columns + (row % 2) * shift) % columns
    column = along.astype(int)
    across_px = np.minimum(y * rows / pixels % 1, 1 - y * rows / pixels % 1) * pixels / rows
    along_px = np.minimum(along % 1, 1 - along % 1) * pixels / columns
    return row * columns + column, across_px, along_px


def _wood(rng: Generator, pixels: int, base: Array, slope: float = 1.3) -> Array:
    grain = fractal(rng, pixels, pixels, slope, stretch=0.06)
    return base * (1 + 0.11 * grain)[..., None]


def planks(rng: Generator) -> tuple[Array, float]:
    """Floor boards; the texture spans 1.4 to 2 m."""
    pixels, rows = 384, 2 * int(rng.integers(5, 9))
    base = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.25, 0.65), rng.uniform(0.35, 0.8))
    cell, across, along = _grid(rng, rows, int(rng.integers(1, 3)), pixels, 0.5)
    shade = 1 + 0.1 * rng.standard_normal(cell.max() + 1)[cell]
    joints = np.where(np.minimum(across, along) < 0.9, 0.62, 1.0)
    return _wood(rng, pixels, base) * (shade * joints)[..., None], rng.uniform(1.4, 2.0)


def tiles(rng: Generator) -> tuple[Array, float]:
    """Square tiles with mortar, one or two colours; the texture spans 4 tiles of 15 to 45 cm."""
    pixels, count = 320, 4
    hue = rng.random()
    one = hsv(hue, rng.uniform(0, 0.35), rng.uniform(0.45, 0.95))
    two = one * rng.uniform(0.4, 0.9) if rng.random() < 0.35 else one
    cell, across, along = _grid(rng, count, count, pixels, 0.0)
    chequer = ((cell // count + cell % count) % 2)[..., None]
    shade = 1 + 0.04 * rng.standard_normal(count * count)[cell] + 0.04 * fractal(rng, pixels, pixels)
    joint = (np.minimum(across, along) < 1.3)[..., None]
    glazed = np.where(chequer, one, two) * shade[..., None]
    return np.where(joint, rng.uniform(0.35, 0.85), glazed), rng.uniform(0.6, 1.8)


def carpet(rng: Generator) -> tuple[Array, float]:
    """A short-haired carpet."""
    base = hsv(rng.random(), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.8))
    noise = 0.07 * fractal(rng, 256, 256, 0.3) + 0.04 * fractal(rng, 256, 256, 1.5)
    return base * (1 + noise)[..., None], 1.2


def stone(rng: Generator) -> tuple[Array, float]:
    """Concrete or veined stone."""
    base = hsv(rng.uniform(0.05, 0.65), rng.uniform(0, 0.12), rng.uniform(0.45, 0.9))
    cloud = fractal(rng, 384, 384, 1.6)
    veins = np.exp(-np.abs(fractal(rng, 384, 384, 1.7)) * 14) * rng.choice([0.0, 0.3])
    return base * (1 + 0.07 * cloud - veins)[..., None], 2.4


def paint(rng: Generator) -> tuple[Array, float]:
    """Painted plaster: mostly pale, now and then a strong colour."""
    strong = rng.random() < 0.3
    saturation, value = (rng.uniform(0.3, 0.65), rng.uniform(0.45, 0.85)) if strong else (
        rng.uniform(0.0, 0.2), rng.uniform(0.75, 0.96))  # fmt: skip
    noise = 0.025 * fractal(rng, 256, 256, 1.4) + 0.02 * fractal(rng, 256, 256, 0.4)
    hue = rng.random() if strong or rng.random() < 0.5 else rng.uniform(0.02, 0.17)
    return hsv(hue, saturation, value) * (1 + noise)[..., None], 2.0


def bricks(rng: Generator) -> tuple[Array, float]:
    """A brick wall, red, brown, or painted over."""
    pixels, rows = 320, 12
    hue, saturation, value = rng.uniform(0.01, 0.08), rng.uniform(0.05, 0.6), rng.uniform(0.4, 0.85)
    cell, across, along = _grid(rng, rows, 4, pixels, 0.5)
    shade = 1 + 0.12 * rng.standard_normal(rows * 4)[cell] + 0.08 * fractal(rng, pixels, pixels, 0.8)
    joint = (np.minimum(across, along) < 2.0)[..., None]
    return np.where(joint, rng.uniform(0.5, 0.85), hsv(hue, saturation, value) * shade[..., None]), 0.95


def wallpaper(rng: Generator) -> tuple[Array, float]:
    """Stripes, or motifs on a ground."""
    pixels = 256
    ground = hsv(rng.random(), rng.uniform(0.03, 0.3), rng.uniform(0.6, 0.95))
    ink = hsv(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.9))
    y, x = np.mgrid[:pixels, :pixels] / pixels
    if rng.random() < 0.5:
        count = int(rng.integers(2, 7))
        mask = (x * count % 1 < rng.uniform(0.2, 0.6)).astype(float)
    else:
        count = int(rng.integers(2, 5))
        u, v = (x * count + (np.floor(y * count * 2) % 2) * 0.5) % 1 - 0.5, (y * count * 2) % 1 - 0.5
        petals = 0.3 + 0.12 * np.cos(int(rng.integers(3, 7)) * np.arctan2(v, u))
        mask = (np.hypot(u, v) < petals).astype(float)
    mask = mask[..., None] * rng.uniform(0.4, 1.0)
    paper = (1 + 0.02 * fractal(rng, pixels, pixels, 0.8))[..., None]
    return (ground * (1 - mask) + ink * mask) * paper, rng.uniform(0.5, 1.2)


def panelling(rng: Generator) -> tuple[Array, float]:
    """Upright wooden boards."""
    base = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9))
    cell, across, _ = _grid(rng, 12, 1, 320, 0.0)
    shade = (1 + 0.06 * rng.standard_normal(12)[cell]) * np.where(across < 1.0, 0.6, 1.0)
    return np.swapaxes(_wood(rng, 320, base) * shade[..., None], 0, 1), 1.5


def floor_texture(kind: str, rng: Generator) -> tuple[Array, float]:
    """A floor for a room of ``kind``, and the metres that the texture spans."""
    weights = (0.25, 0.6, 0.0, 0.15) if kind == "kitchen" else (0.55, 0.12, 0.23, 0.1)
    return _pick((planks, tiles, carpet, stone), weights, rng)


def wall_texture(kind: str, rng: Generator) -> tuple[Array, float]:
    """A wall for a room of ``kind``, and the metres that the texture spans."""
    weights = (0.5, 0.12, 0.05, 0.05, 0.28) if kind == "kitchen" else (0.6, 0.12, 0.18, 0.07, 0.03)
    return _pick((paint, bricks, wallpaper, panelling, tiles), weights, rng)


def _pick(
    makers: tuple[Callable[[Generator], tuple[Array, float]], ...], weights: tuple[float, ...], rng: Generator
) -> tuple[Array, float]:
    return makers[rng.choice(len(makers), p=weights)](rng)


def landscape(rng: Generator, night: bool = False, pixels: int = 128) -> Array:
    """Sky over a few ranges of hills or roofs, sharp enough to be told from a wall."""
    y = np.mgrid[:pixels, :pixels][0] / pixels
    top = hsv(rng.uniform(0.54, 0.64), rng.uniform(0.05, 0.6), rng.uniform(0.75, 1.0))
    low = hsv(rng.uniform(0.05, 0.6), rng.uniform(0.0, 0.25), rng.uniform(0.85, 1.0))
    picture = top * (1 - y[..., None]) + low * y[..., None]
    cloud = np.clip(fractal(rng, pixels, pixels, 1.5, stretch=0.5), 0, 1)[..., None] * rng.uniform(0, 0.5)
    picture = picture * (1 - cloud) + cloud
    horizon, town = rng.uniform(0.35, 0.6), rng.random() < 0.3
    for depth in range(int(rng.integers(1, 4))):
        line = fractal(rng, 1, pixels, 1.4)[0] * 0.05
        if town:
            line = np.repeat(rng.normal(0, 0.09, 16), pixels // 16)[:pixels]
        ground = hsv(rng.uniform(0.05, 0.38), rng.uniform(0.1, 0.55), rng.uniform(0.25, 0.65))
        noise = (1 + 0.12 * fractal(rng, pixels, pixels, 0.9))[..., None]
        picture = np.where((y > horizon + 0.12 * depth + line[None])[..., None], ground * noise, picture)
    return picture * 0.25 if night else picture


def painting(rng: Generator, pixels: int = 96) -> Array:
    """A simple picture: a landscape, colour fields, discs and bars, or a soft abstract."""
    kind = rng.integers(4)
    if kind == 0:
        return landscape(rng, pixels=pixels)
    if kind == 1:
        fields = np.stack([fractal(rng, pixels, pixels, 1.8) for _ in range(3)], axis=-1)
        return np.clip(0.5 + rng.uniform(0.15, 0.35) * fields, 0, 1)
    y, x = np.mgrid[:pixels, :pixels] / pixels
    picture = np.ones((pixels, pixels, 3)) * hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 1.0))
    for _ in range(int(rng.integers(3, 9))):
        colour = hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.1, 1.0))
        cx, cy, a, b = rng.uniform((0, 0, 0.05, 0.05), (1, 1, 0.35, 0.35))
        inside = np.hypot(x - cx, y - cy) < a if kind == 2 else (np.abs(x - cx) < a) & (np.abs(y - cy) < b)
        picture = np.where(inside[..., None], colour, picture)
    return picture * (1 + 0.03 * fractal(rng, pixels, pixels, 0.8))[..., None]
