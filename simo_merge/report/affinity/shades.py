"""Colours and digits of a matrix's values: a scale over what is there, and text that can be read on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simo_merge.colours import Rgb, magma
from simo_merge.report.affinity.drawing import FAINT, GRID, INK, SIZE, WHITE, Box, Drawing, Text

LINES: tuple[Rgb, ...] = (
    (27, 108, 168), (209, 73, 91), (46, 139, 87), (138, 90, 171), (199, 119, 0), (42, 161, 168), (160, 82, 45),
    (63, 63, 63),
)  # fmt: skip
"""Colours of lines, by task; the ninth task has the first again."""
_DARKEST, _LIGHTEST = 0.12, 0.96
_STEPS = 48
_BAR = 12.0
_DECIMALS = 5


@dataclass(frozen=True)
class Shades:
    """A scale from dark (low) to light (high) over [low, high]."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Shades:
        """The scale over all values that are finite; 0 to 1 where there is none."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(min(finite), max(finite)) if finite else cls(0.0, 1.0)

    def fill(self, value: float) -> Rgb:
        """The colour of a value; grey where it is NaN."""
        if not math.isfinite(value):
            return GRID
        share = 0.5 if self.high <= self.low else (value - self.low) / (self.high - self.low)
        inside = _DARKEST + (_LIGHTEST - _DARKEST) * min(max(share, 0.0), 1.0)
        red, green, blue = magma(np.array(inside)).tolist()
        return red, green, blue

    def ink(self, value: float) -> Rgb:
        """Dark or white, whichever reads better on the value's colour (luma of Rec. 601)."""
        red, green, blue = self.fill(value)
        return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE

    def text(self, value: float) -> str:
        """The value with two digits that tell it from the others; an en dash where it is NaN."""
        return digits(value, self.high - self.low)

    def bar(self, drawing: Drawing, x: float, top: float, height: float) -> None:
        """Draw the scale upright, highest on top, with its ends."""
        for step in range(_STEPS):
            value = self.high - (step + 0.5) / _STEPS * (self.high - self.low)
            drawing.add(Box(x, top + step * height / _STEPS, _BAR, height / _STEPS + 0.5, self.fill(value)))
        for place, value in ((top + 5, self.high), (top + height - 5, self.low)):
            drawing.add(Text(x + _BAR + 5, place, self.text(value), fill=FAINT, size=SIZE - 2))


def digits(value: float, spread: float) -> str:
    """A number with as many decimals as show two digits of the spread; an en dash for NaN."""
    if not math.isfinite(value):
        return "–"
    size = spread if spread > 1e-9 * abs(value) else 0.1 * abs(value)
    if size <= 0:
        return "0"
    decimals = max(0, 1 - math.floor(math.log10(size)))
    if decimals > _DECIMALS and 0 < abs(value) < 10.0 ** (1 - _DECIMALS):
        return f"{value:.1e}".replace("-", "−")
    rounded = round(value, min(decimals, _DECIMALS)) + 0.0  # no "-0.00"
    return f"{rounded:.{min(decimals, _DECIMALS)}f}".replace("-", "−")
