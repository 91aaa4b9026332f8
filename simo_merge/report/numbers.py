"""Numbers as people read them: units, arrows, signs, and an en dash where nothing was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simo_merge.errors import SimoError
from simo_merge.metrics import gain_ratio
from simo_merge.tasks import Task

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

_ANGLE_SHARE = "within_"


@dataclass(frozen=True)
class MetricText:
    """How a metric is printed: name, unit, factor from stored to printed value, better direction."""

    name: str
    unit: str
    factor: float
    higher_is_better: bool

    @property
    def arrow(self) -> str:
        """Arrow that points to the better side."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        """The arrow in words."""
        return "higher is better" if self.higher_is_better else "lower is better"

    def value(self, stored: float) -> str:
        """Return the number without its unit: three significant digits, one decimal at most from 10 on."""
        if not math.isfinite(stored):
            return MISSING
        shown = stored * self.factor
        digits = 1 if abs(shown) >= 10 else 2 if abs(shown) >= 1 else 3
        return minus(f"{shown:.{digits}f}")


def metric_text(task: Task, metric: str) -> MetricText:
    """Return how a metric of a task is printed; an unknown metric keeps its name and has no unit."""
    known = {
        "miou": MetricText("mean IoU", "%", 100.0, True),
        "pixel_accuracy": MetricText("pixel accuracy", "%", 100.0, True),
        "abs": MetricText("absolute error", task.unit, 1.0, False),
        "rel": MetricText("relative error", "%", 100.0, False),
        "rmse": MetricText("root mean square error", task.unit, 1.0, False),
        "delta1": MetricText("within a factor of 1.25", "%", 100.0, True),
        "mean": MetricText("mean angle", "°", 1.0, False),
        "median": MetricText("median angle", "°", 1.0, False),
    }
    if metric in known:
        return known[metric]
    if metric.startswith(_ANGLE_SHARE):
        return MetricText(f"within {metric.removeprefix(_ANGLE_SHARE)}°", "%", 100.0, True)
    return MetricText(metric.replace("_", " "), "", 1.0, task.higher_is_better)


def relative_gain(task: Task, score: float, expert: float) -> float:
    """Return the task's term of `delta_ratio` in percent, or NaN where it cannot be formed."""
    try:
        return gain_ratio(score, expert, task.higher_is_better)
    except SimoError:
        return math.nan


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign, zero without one: `+1.2`, `−27.5`, `0.0`."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:+.{digits}f}"
    return minus(text) if float(text) else f"{0:.{digits}f}"


def percent(value: float, digits: int = 1) -> str:
    """Return a signed percentage: `+1.2 %`, `−27.5 %`."""
    return f"{signed(value, digits)} %" if math.isfinite(value) else MISSING


def count(value: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short_count(value: int) -> str:
    """Return a count in at most three significant digits: `295 k`, `22.1 M`."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{float(f'{value / size:.3g}'):g} {letter}"
    return str(value)


def seconds(value: float) -> str:
    """Return a duration: `0.35 s`, `12.4 s`, `7.1 min`, `1.3 h`."""
    if not math.isfinite(value):
        return MISSING
    if value < 1:
        return f"{value:.2g} s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def minus(text: str) -> str:
    """Return the text with a typographic minus sign in front instead of a hyphen."""
    return MINUS + text[1:] if text.startswith("-") else text
