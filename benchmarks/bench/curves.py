"""Delta against cost: curves over seeds, and where they cross.

A curve is the mean over seeds of delta at each cost x. Between its points it is linear in log x, before the first it is
nowhere, and after the last it stays: a fit that has ended keeps what it has. A fit without any step has cost 1 where
steps are counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from simo_merge.results import ResultRow

AXES = ("steps", "seconds", "seconds with experts")
LEAST = {"steps": 1.0, "seconds": 1e-3, "seconds with experts": 1e-3}

_EQUAL = 1e-9
"""Deltas, in percent, that differ by less are equal: interpolation rounds."""


@dataclass(frozen=True)
class Point:
    """Means over seeds: cost, delta in percent; spread: standard deviation of delta, 0 of one seed."""

    x: float
    delta: float
    spread: float
    seeds: int


def cost(row: ResultRow, axis: str, experts: Sequence[ResultRow] = ()) -> float:
    """What a row cost.

    Args:
        row: the row.
        axis: `steps`; `seconds` of the merge, of capturing features and of the fit; or `seconds with experts`, which
            adds what it took to train them, for all that starts from them.
        experts: their rows.
    """
    if axis == "steps":
        return max(float(row.steps), LEAST[axis])
    parts = (row.merge_seconds, row.capture_seconds, row.fit_seconds)
    seconds = sum(part for part in parts if math.isfinite(part))
    if axis == "seconds with experts" and not row.method.startswith("joint-"):
        seconds += sum(e.fit_seconds for e in experts if (e.seed, e.tasks) == (row.seed, row.tasks))
    return max(seconds, LEAST[axis])


def curve(rows: Sequence[ResultRow], axis: str, experts: Sequence[ResultRow] = ()) -> list[Point]:
    """The points of one method's rows: one for each number of steps, means over seeds, cheapest first."""
    found: dict[int, list[ResultRow]] = {}
    for row in rows:
        found.setdefault(row.steps, []).append(row)
    points = []
    for same in found.values():
        deltas = [row.delta_ratio for row in same]
        x = statistics.fmean(cost(row, axis, experts) for row in same)
        spread = statistics.stdev(deltas) if len(deltas) > 1 else 0.0
        points.append(Point(x, statistics.fmean(deltas), spread, len(deltas)))
    return sorted(points, key=lambda point: point.x)


def value(points: Sequence[Point], x: float) -> float:
    """The curve at x; NaN before its first point."""
    if x < points[0].x:
        return math.nan
    for left, right in pairwise(points):
        if left.x <= x < right.x:
            share = math.log(x / left.x) / math.log(right.x / left.x)
            return left.delta + share * (right.delta - left.delta)
    return points[-1].delta


@dataclass(frozen=True)
class Meeting:
    """How two curves stand to each other.

    begins: the least cost at which both are there. ahead: which of the two is better there, or "neither". crossings:
    where the other one takes the lead. ahead_at_end: which is better at the largest cost.
    """

    begins: float
    ahead: str
    crossings: tuple[float, ...]
    ahead_at_end: str


def meeting(a: Sequence[Point], b: Sequence[Point], names: tuple[str, str]) -> Meeting:
    """Where the lead changes between two curves.

    Args:
        a, b: their points.
        names: what they are called.
    """
    begins = max(a[0].x, b[0].x)
    places = sorted({begins, *(point.x for point in (*a, *b) if point.x > begins)})
    gaps = [value(a, x) - value(b, x) for x in places]
    crossings: list[float] = []
    leader = _sign(gaps[0])
    for index, after in enumerate(gaps[1:], start=1):
        if _sign(after) not in (0, leader):
            if leader:
                before, left, right = gaps[index - 1], places[index - 1], places[index]
                share = before / (before - after)  # both curves are linear in log x between two places
                crossings.append(left * (right / left) ** share)
            leader = _sign(after)
    return Meeting(begins, _leader(gaps[0], names), tuple(crossings), _leader(gaps[-1], names))


def _sign(gap: float) -> int:
    return 0 if abs(gap) < _EQUAL else int(math.copysign(1, gap))


def _leader(gap: float, names: tuple[str, str]) -> str:
    return {1: names[0], 0: "neither", -1: names[1]}[_sign(gap)]
