"""Colours for pictures of predictions and labels, without matplotlib (its import costs most of a second)."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

Rgb = tuple[int, int, int]
Picture = npt.NDArray[np.uint8]

MASKED: Rgb = (48, 48, 48)

# Samples of two matplotlib colour maps at equal steps; linear interpolation between them stays within 3/255.
# Turbo: A. Mikhailov, Google AI 2019 (Apache 2.0); magma: S. van der Walt and N. Smith, 2015 (CC0).
_TURBO = """
30123b 392a73 4040a2 4456c7 466be3 4680f6 4294ff 37a8fa 28bceb 1ccdd8 18ddc2
1fe9af 32f298 4ef97d 6dfe62 8bff4b a4fc3c b7f735 cbed34 dde037 ecd13a f7c13a
fdae35 fe992c fb8122 f56918 ec530f e14109 d23105 c12302 ac1701 950d01 7a0403
"""
_MAGMA = """
000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 cf4070 e55064 f4695c fb8761 fea571 fec287
fde0a1 fcfdbf
"""

# The first thirteen are picked by hand for NYUv2 in its order: bed, books, ceiling, chair, floor, furniture,
# objects, picture, sofa, table, tv, wall, window. Large surfaces are calm, things are vivid.
_FIRST: tuple[Rgb, ...] = (
    (214, 39, 72),
    (250, 200, 40),
    (205, 200, 240),
    (48, 99, 214),
    (150, 95, 55),
    (245, 130, 48),
    (225, 70, 220),
    (60, 205, 220),
    (130, 60, 180),
    (40, 150, 65),
    (20, 30, 100),
    (186, 184, 168),
    (150, 240, 165),
)


def turbo(values: npt.NDArray[np.float64]) -> Picture:
    """Colours of values in [0, 1], blue to red: (...) -> uint8 (..., 3)."""
    return _interpolate(values, _TURBO)


def magma(values: npt.NDArray[np.float64]) -> Picture:
    """Colours of values in [0, 1], black over purple to pale yellow: (...) -> uint8 (..., 3)."""
    return _interpolate(values, _MAGMA)


@lru_cache(maxsize=32)
def distinct_colours(count: int) -> tuple[Rgb, ...]:
    """`count` colours of which no two are alike, each call the same; more colours extend fewer.

    After thirteen picked ones, each next colour is the one of a coarse RGB grid that is farthest, in CIE
    L*a*b*, from all before it and from the grey of masked pixels.
    """
    if count <= len(_FIRST):
        return _FIRST[:count]
    candidates = np.array(list(product(range(0, 256, 17), repeat=3)))  # (4096, 3)
    places = _lab(candidates)
    taken = _lab(np.array([MASKED, *_FIRST]))
    distance = np.linalg.norm(places[:, None] - taken[None], axis=-1).min(axis=1)
    chosen = list(_FIRST)
    while len(chosen) < count:
        best = int(distance.argmax())
        red, green, blue = (int(value) for value in candidates[best])
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(places - places[best], axis=-1))
    return tuple(chosen)


def unit_interval(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Maps low..high to 0..1 and clips; a range without extent maps to 0."""
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def to_bytes(values: npt.NDArray[np.float64]) -> Picture:
    """Values in [0, 1] as uint8 0..255; values outside are clipped, NaN becomes 0."""
    return np.rint(np.clip(np.nan_to_num(values), 0.0, 1.0) * 255).astype(np.uint8)


def _interpolate(values: npt.NDArray[np.float64], table: str) -> Picture:
    knots = np.array([list(bytes.fromhex(colour)) for colour in table.split()]) / 255
    at = np.linspace(0.0, 1.0, len(knots))
    return to_bytes(np.stack([np.interp(values, at, knots[:, channel]) for channel in range(3)], axis=-1))


def _lab(rgb: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Converts sRGB 0..255 to CIE L*a*b* under D65: (N, 3) -> (N, 3)."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)  # relative to white
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
