"""A drawing of a few kinds of shapes that becomes SVG or pixels, which look alike and need no library of plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from simo_merge.colours import Picture, Rgb
from simo_merge.report.svg import element

INK: Rgb = (29, 28, 26)
FAINT: Rgb = (98, 94, 86)
GRID: Rgb = (227, 223, 212)
WHITE: Rgb = (255, 255, 255)
SIZE = 12.0
Anchor = Literal["start", "middle", "end"]
_PLAIN = str.maketrans("−–×→", "--x>")  # Pillow's own font has none of these
_ANCHORS: dict[Anchor, str] = {"start": "lm", "middle": "mm", "end": "rm"}
_FONTS = "Helvetica, Arial, Liberation Sans, sans-serif"
_DRAWN = 2  # pixels are drawn so many times too large and averaged: Pillow's lines are jagged


class Shape(Protocol):
    """Something that can be drawn in both ways."""

    def svg(self) -> Markup:
        """The element."""
        ...

    def paint(self, image: Image.Image, scale: float) -> None:
        """Put it on a picture that is `scale` times as large."""
        ...


@dataclass(frozen=True)
class Box:
    """A filled rectangle; told: what a pointer over it shows."""

    x: float
    y: float
    width: float
    height: float
    fill: Rgb
    radius: float = 0.0
    told: str = ""

    def svg(self) -> Markup:
        """The element."""
        tip = [element("title", self.told)] if self.told else []
        return element(
            "rect", *tip, x=self.x, y=self.y, width=self.width, height=self.height, rx=self.radius or None,
            fill=_hex(self.fill),
        )  # fmt: skip

    def paint(self, image: Image.Image, scale: float) -> None:
        """Put it on a picture."""
        corners = [scale * value for value in (self.x, self.y, self.x + self.width, self.y + self.height)]
        corners[2], corners[3] = max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])
        ImageDraw.Draw(image).rounded_rectangle(corners, scale * self.radius, fill=self.fill)


@dataclass(frozen=True)
class Path:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    stroke: Rgb
    width: float = 1.0

    def svg(self) -> Markup:
        """The element."""
        text = " ".join(f"{x:.2f},{y:.2f}" for x, y in self.points)
        return element("polyline", points=text, fill="none", stroke=_hex(self.stroke), stroke_width=self.width)

    def paint(self, image: Image.Image, scale: float) -> None:
        """Put it on a picture."""
        points = [(scale * x, scale * y) for x, y in self.points]
        ImageDraw.Draw(image).line(points, fill=self.stroke, width=max(1, round(scale * self.width)), joint="curve")


@dataclass(frozen=True)
class Dot:
    """A filled circle; told: what a pointer over it shows."""

    x: float
    y: float
    radius: float
    fill: Rgb
    told: str = ""

    def svg(self) -> Markup:
        """The element."""
        tip = [element("title", self.told)] if self.told else []
        return element("circle", *tip, cx=self.x, cy=self.y, r=self.radius, fill=_hex(self.fill))

    def paint(self, image: Image.Image, scale: float) -> None:
        """Put it on a picture."""
        left, top = scale * (self.x - self.radius), scale * (self.y - self.radius)
        size = 2 * scale * self.radius
        ImageDraw.Draw(image).ellipse((left, top, left + size, top + size), fill=self.fill)


@dataclass(frozen=True)
class Text:
    """A line of text around (x, y): its middle in height, its start, middle or end in width.

    upright: turned by a quarter to the left, so that it reads upwards; the anchor then is along the height.
    """

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    fill: Rgb = INK
    size: float = SIZE
    bold: bool = False
    upright: bool = False

    def svg(self) -> Markup:
        """The element; a third of the size below the baseline's place is the middle of small letters."""
        turn = f"rotate(-90 {self.x:.2f} {self.y:.2f})" if self.upright else None
        return element(
            "text", self.text, x=self.x, y=self.y, dy="0.35em", text_anchor=self.anchor, fill=_hex(self.fill),
            font_size=self.size, font_weight="bold" if self.bold else None, transform=turn,
        )  # fmt: skip

    def paint(self, image: Image.Image, scale: float) -> None:
        """Put it on a picture; bold is drawn as a thin outline, for Pillow has one weight."""
        text, font = self.text.translate(_PLAIN), _font(scale * self.size)
        stroke = max(1, round(0.02 * scale * self.size)) if self.bold else 0
        if not self.upright:
            place = scale * self.x, scale * self.y
            draw = ImageDraw.Draw(image)
            draw.text(place, text, fill=self.fill, font=font, anchor=_ANCHORS[self.anchor], stroke_width=stroke)
            return
        width, height = round(font.getlength(text)) + 2 * stroke + 2, round(1.4 * scale * self.size)
        mask = Image.new("L", (width, height), 0)
        ImageDraw.Draw(mask).text((1, height / 2), text, fill=255, font=font, anchor="lm", stroke_width=stroke)
        mask = mask.transpose(Image.Transpose.ROTATE_90)
        before = {"start": width, "middle": width / 2, "end": 0}[self.anchor]
        image.paste(self.fill, (round(scale * self.x - height / 2), round(scale * self.y - before)), mask)


@dataclass
class Drawing:
    """Shapes on white paper, the later ones above.

    width, height: in pixels of SVG. title: for readers who cannot see it.
    """

    width: float
    height: float
    title: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Put shapes on top."""
        self.shapes += shapes

    def svg(self) -> str:
        """A whole SVG file, which also stands inside a page."""
        paper = element("rect", width=self.width, height=self.height, fill=_hex(WHITE))
        picture = element(
            "svg", element("title", self.title), paper, *(shape.svg() for shape in self.shapes),
            xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {self.width:g} {self.height:g}", width=self.width,
            height=self.height, role="img", font_family=_FONTS, font_size=SIZE,
        )  # fmt: skip
        return str(picture) + "\n"

    def pixels(self, scale: float = 2.0) -> Picture:
        """The same as pixels, uint8 (scale * height, scale * width, 3)."""
        size = round(scale * self.width), round(scale * self.height)
        image = Image.new("RGB", (_DRAWN * size[0], _DRAWN * size[1]), WHITE)
        for shape in self.shapes:
            shape.paint(image, _DRAWN * scale)
        return np.asarray(image.resize(size, Image.Resampling.BOX), dtype=np.uint8)


def text_width(texts: Sequence[str], size: float = SIZE) -> float:
    """The width of the widest text, about: fonts of SVG are those of who looks."""
    return max((float(_font(4 * size).getlength(text.translate(_PLAIN))) / 4 for text in texts), default=0.0)


@cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
