"""Text and shapes on a white picture."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simo_merge.colours import Picture, Rgb

INK: Rgb = (30, 30, 34)
FAINT: Rgb = (115, 115, 122)
GRID: Rgb = (225, 225, 230)
WHITE: Rgb = (255, 255, 255)


class Canvas:
    """A white picture to draw on; coordinates are pixels from the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "la", colour: Rgb = INK) -> None:
        """Write one line; `anchor` is Pillow's, as `la` for left and top, `mm` for the middle."""
        self._draw.text((x, y), text, fill=colour, font=_font(size), anchor=anchor)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb) -> None:
        """A filled rectangle; nothing where it has no extent."""
        corners = round(left), round(top), round(right) - 1, round(bottom) - 1
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            self._draw.rectangle(corners, fill=colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb = GRID) -> None:
        """A thin line."""
        self._draw.line((round(x0), round(y0), round(x1), round(y1)), fill=colour, width=1)

    def paste(self, picture: Picture, x: int, y: int, width: int, height: int, smooth: bool) -> None:
        """Put a picture into a box, scaled to fill it; labels are not smoothed, nor what is enlarged much."""
        smooth = smooth and width < 3 * picture.shape[1]
        method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        self.image.paste(Image.fromarray(picture).resize((width, height), method), (x, y))

    def pixels(self) -> Picture:
        """The picture, uint8 (H, W, 3)."""
        return np.asarray(self.image, dtype=np.uint8)


def shortened(text: str, width: float, size: int = 13) -> str:
    """The text, or as much of its end as fits into `width` pixels: keys differ at their ends."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"...{text}", size) > width:
        text = text[1:]
    return f"...{text}"


def text_width(text: str, size: int = 13) -> float:
    """Width of a line in pixels."""
    return float(_font(size).getlength(text))


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about that many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1.0, 2.0, 5.0, 10.0) if unit * factor >= raw * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float, digits: int = 4) -> str:
    """A number with so many digits; Pillow's own font has no minus sign but the hyphen."""
    return f"{value:.{digits}g}" if abs(value) > 1e-12 else "0"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
