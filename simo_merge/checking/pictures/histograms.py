"""Histograms: shares of classes, distributions of numbers, angles of normals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simo_merge.checking.findings import percent
from simo_merge.checking.pictures.canvas import FAINT, GRID, INK, Canvas, number, ticks
from simo_merge.checking.statistics import (
    ClassStatistics,
    NormalsStatistics,
    Statistics,
    TaskStatistics,
    ValueStatistics,
)
from simo_merge.colours import Picture, Rgb

_WIDTH = 960
_MARGIN = 24
_TITLE = 34
_PLOT = 190
_AXIS = 46
_BAR: Rgb = (62, 110, 180)
_MARK: Rgb = (200, 60, 40)
_CLASS = 19
_BINS = 80
_SIDES = (("left", "right"), ("up", "down"), ("to the viewer", "away"))


def histograms(statistics: Statistics) -> Picture:
    """A picture with a panel for each task: what its labels hold, and how often."""
    shown = [counted for counted in statistics.labels.values() if counted.valid]
    height = 60 + sum(_height(counted) for counted in shown) + _MARGIN
    canvas = Canvas(_WIDTH, height)
    layout = f", layout {statistics.layout}" if statistics.layout else ""
    title = f"{statistics.data} ({statistics.split}{layout}): labels of {statistics.images.count:,} images"
    canvas.text(_MARGIN, 18, title, 17)
    y = 60
    for counted in shown:
        canvas.text(_MARGIN, y, f"{counted.task.name}: {percent(counted.valid_share)} of the pixels are labelled", 15)
        _panel(canvas, y + _TITLE, counted)
        y += _height(counted)
    return canvas.pixels()


def _height(counted: TaskStatistics) -> int:
    if isinstance(counted, ClassStatistics):
        return _TITLE + _CLASS * len(counted.task.classes) + 20
    return _TITLE + _PLOT + _AXIS


def _panel(canvas: Canvas, y: int, counted: TaskStatistics) -> None:
    if isinstance(counted, ClassStatistics):
        _classes(canvas, y, counted)
    elif isinstance(counted, NormalsStatistics):
        _angles(canvas, y, counted)
    elif isinstance(counted, ValueStatistics):
        low, high = _range(counted)
        counts = counted.histogram.linear(low, high, _BINS)
        unit = f" {counted.task.unit}" if counted.task.unit else ""
        label = (
            f"{counted.task.name}{f' in{unit}' if unit else ''}; the red line is the median, {counted.median:.3g}{unit}"
        )
        if counted.highest > high * 1.05:
            label += f"; the largest is {counted.highest:.4g}{unit}"
        _bars(canvas, (_MARGIN, y, _WIDTH - 2 * _MARGIN), counts, (low, high), label, mark=counted.median)


def _range(counted: ValueStatistics) -> tuple[float, float]:
    """From the lowest value (0 where it is near) to almost the highest: a few outliers would flatten the rest."""
    high = min(counted.histogram.quantile(0.999) * 1.02, counted.highest) if counted.highest > 0 else counted.highest
    low = counted.lowest
    if 0 < low < 0.3 * high:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _classes(canvas: Canvas, y: int, counted: ClassStatistics) -> None:
    left, right = _MARGIN + 190, _WIDTH - _MARGIN - 150
    most = max(float(counted.shares.max()), 1e-9)
    entries = zip(counted.task.classes, counted.task.colours, counted.shares, counted.occurs, strict=True)
    for index, (name, colour, share, images) in enumerate(entries):
        top = y + index * _CLASS
        canvas.text(left - 8, top + 1, f"{index} {name}", 12, "ra")
        length = (right - left) * float(share) / most
        canvas.box(left, top + 1, left + length, top + 15, colour)
        if share and length < 1:
            canvas.box(left, top + 1, left + 1, top + 15, INK)
        seen = f"{percent(float(share))}, in {int(images):,} images" if images else "absent"
        canvas.text(left + length + 6, top + 1, seen, 12, colour=FAINT if images else _MARK)


def _angles(canvas: Canvas, y: int, counted: NormalsStatistics) -> None:
    """Angle out of the plane of the other two axes for x and y, and angle to the viewer for z."""
    width = (_WIDTH - 2 * _MARGIN - 2 * 30) // 3
    for axis, (low_side, high_side) in enumerate(_SIDES):
        box = (_MARGIN + axis * (width + 30), y, width)
        counts = counted.angles[axis].reshape(60, 3).sum(axis=1).astype(np.float64)
        if axis == 2:
            _bars(canvas, box, counts[::-1], (0.0, 180.0), f"degrees, 0 is {low_side}, 180 is {high_side}", step=30)
        else:
            _bars(canvas, box, counts, (-90.0, 90.0), f"degrees, -90 is {low_side}, 90 is {high_side}", step=30)


def _bars(
    canvas: Canvas,
    box: tuple[int, int, int],
    counts: npt.NDArray[np.float64],
    span: tuple[float, float],
    label: str,
    mark: float | None = None,
    step: float | None = None,
) -> None:
    """Bars of equal bins over `span`, scaled to the highest, with an axis; `box` is left, top and width."""
    left, top, width = box
    bottom, (low, high) = top + _PLOT, span

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * width

    places: Sequence[float] = ticks(low, high, 8)
    if step is not None:
        places = [low + step * n for n in range(round((high - low) / step) + 1)]
    for place in places:
        canvas.line(at(place), top, at(place), bottom)
    most, size = max(float(counts.max()), 1e-9), (high - low) / len(counts)
    for index, count in enumerate(counts):
        canvas.box(at(low + index * size), bottom - _PLOT * count / most, at(low + (index + 1) * size), bottom, _BAR)
    canvas.line(left, bottom, left + width, bottom, GRID if not len(counts) else FAINT)
    if mark is not None and low <= mark <= high:
        canvas.box(at(mark) - 1, top, at(mark) + 1, bottom, _MARK)
    for place in places:
        canvas.text(at(place), bottom + 5, number(place), 11, "ma", FAINT)
    canvas.text(left, bottom + 22, label, 12, colour=FAINT)
