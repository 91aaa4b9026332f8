"""Units of disparity, and the camera that turns disparity into depth.

A file stores whole numbers p: 0 is "no measurement", and p > 0 stands for (p - 1) / 256 pixels in an image 2048
wide (cityscapesScripts, README). Every unit here is a straight line through p:

    px@W       (p - 1) W / (256 · 2048)    pixels of disparity in an image W wide; infinity is 0
    published  p / 65535                   what MTAN's arrays hold; infinity is 1 / 65535

Resizing a picture changes no value: a unit says which width it counts in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError

FULL_WIDTH = 2048
"""Width of the pictures as they were published; stored disparities and focal lengths count its pixels."""
STEPS = 256
"""Stored numbers to a pixel of disparity."""
LARGEST = 65535
"""The largest stored number: 16 bits."""

_TYPICAL = 12.0
"""About the median disparity in px@2048. An estimate from published figures: SamsungLabs/MTL divides stored numbers by
2729.068, presumably their spread, which is 10.7 px; and the errors that the Nash-MTL family compares with, 0.0125 in
the published unit and 27.77 % of the value, belong to a value of about 0.045, which is 11.5 px."""

Values = TypeVar("Values", float, Tensor)


@dataclass(frozen=True)
class DisparityUnit:
    """What a number of disparity counts: value = p · scale + offset, for the stored number p > 0.

    Attributes:
        name: As in `Task.unit`: `px@2048`, `published`.
        scale, offset: From the stored number.
    """

    name: str
    scale: float
    offset: float

    @property
    def typical(self) -> float:
        """About the median of Cityscapes in this unit; an estimate from published figures."""
        return (_TYPICAL * STEPS + 1) * self.scale + self.offset

    def of_stored(self, stored: Values) -> Values:
        """Stored numbers p > 0 in this unit."""
        return stored * self.scale + self.offset

    def to_stored(self, values: Values) -> Values:
        """The stored numbers of values in this unit; the inverse of `of_stored`, not rounded."""
        return (values - self.offset) / self.scale


def pixels(width: int) -> DisparityUnit:
    """Pixels of disparity in an image `width` wide, `px@<width>`."""
    if width < 1:
        raise SimoError(f"disparity counts pixels of an image {width} wide, expected a width of 1 or more")
    step = width / (FULL_WIDTH * STEPS)
    return DisparityUnit(f"px@{width}", step, -step)


PIXELS = pixels(FULL_WIDTH)
"""Pixels of disparity in the pictures as they were published."""

PUBLISHED = DisparityUnit("published", 1 / LARGEST, 0.0)
"""p / 65535: the unit of MTAN's arrays, and so of the figures in papers that use them."""


def parse_unit(text: str) -> DisparityUnit:
    """`px@512` or `published` as a unit.

    Raises:
        SimoError: another text; metres are depth, not disparity.
    """
    if text == PUBLISHED.name:
        return PUBLISHED
    match = re.fullmatch(r"px@([1-9]\d*)", text)
    if match is None:
        hint = "; metres are the task depth" if text == "m" else ""
        raise SimoError(
            f"unknown unit of disparity {text!r}; expected px@WIDTH (as px@2048, pixels in an image that wide) or "
            f"{PUBLISHED.name} (p / {LARGEST}){hint}"
        )
    return pixels(int(match[1]))


def convert(values: Values, source: DisparityUnit, target: DisparityUnit) -> Values:
    """Valid disparities from one unit in another."""
    return values if source == target else target.of_stored(source.to_stored(values))


@dataclass(frozen=True)
class Camera:
    """A pair of cameras.

    Attributes:
        baseline: Distance between them in metres.
        focal: Horizontal focal length in pixels of an image 2048 wide.
    """

    baseline: float
    focal: float

    def depth(self, disparity: Tensor, unit: DisparityUnit = PIXELS) -> Tensor:
        """Depth in metres, baseline · focal / d, of valid disparities; a disparity of 0 is infinitely far."""
        return self._over(convert(disparity, unit, PIXELS))

    def disparity(self, depth: Tensor, unit: DisparityUnit = PIXELS) -> Tensor:
        """Disparity of depths in metres; the inverse of `depth`."""
        return convert(self._over(depth), PIXELS, unit)

    def _over(self, values: Tensor) -> Tensor:
        return torch.where(values > 0, self.baseline * self.focal / torch.where(values > 0, values, 1.0), torch.inf)


TYPICAL_DEPTH = 0.209313 * 2262.52 / _TYPICAL
"""About the median depth in metres (39.5): the typical disparity through one of the data set's cameras."""
