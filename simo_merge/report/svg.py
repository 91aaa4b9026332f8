"""Small hand-made SVG: escaped elements, and scales with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

_MOST_TICKS = 16


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return one element; text and attribute values are escaped, `class_` is `class`, `a_b` is `a-b`.

    Numbers are rounded to two decimals: a hundredth of a pixel is invisible, and files stay small.
    """
    pairs = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
        if value is not None
    ]
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), inside)


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to [start, end], with round ticks inside."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value; values outside are put on the edge."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Return round values inside [low, high], about that many, two at least."""
        step = _round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        if last <= first:  # the range is narrower than two steps, or no wider than rounding
            return self.ticks(about + 1) if about < _MOST_TICKS else [self.low, self.high]
        return [index * step for index in range(first, last + 1)]


def round_scale(low: float, high: float, start: float, end: float, about: int = 5) -> Scale:
    """Return a scale that covers [low, high] and ends at round values."""
    if not high > low:
        high = low + 1.0
    step = _round_step((high - low) / about)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def tick_label(value: float) -> str:
    """Return a tick's text without trailing zeros, with a typographic minus sign."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def _round_step(raw: float) -> float:
    size = 10.0 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= raw * (1 - 1e-9))


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
