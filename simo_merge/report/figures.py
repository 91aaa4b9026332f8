"""The report's two plots: delta of every method as bars, and the distance of features at every tap as lines.

Bars are drawn with horizontal positions in percent, so that they fill any width while their text keeps its
size. Colours come from CSS classes: the page's light and dark schemes set them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from simo_merge.report.contents import AlignmentRow
from simo_merge.report.methods import EXPERTS, Family, describe, family
from simo_merge.report.numbers import MISSING, percent, relative_gain
from simo_merge.report.summary import Group
from simo_merge.report.svg import Scale, element, round_scale, tick_label
from simo_merge.tasks import Task

BAR_HEIGHT = 18
MARKS = ("●", "■", "▲", "◆", "▼", "★")


@dataclass(frozen=True)
class Bar:
    """One method in the bar plot."""

    name: str
    family: Family
    best: bool
    value: str
    svg: Markup


@dataclass(frozen=True)
class BarPlot:
    """Delta of every method of a group; `marks` says which mark stands for which task."""

    bars: tuple[Bar, ...]
    axis: Markup
    marks: tuple[tuple[str, str], ...]


def delta_plot(group: Group, tasks: Sequence[Task]) -> BarPlot:
    """Return the bar plot of mean delta (ratio form); a mark on the bar is one task's part of the mean."""
    methods = [method for method in group.methods if method != EXPERTS]
    gains = {method: _gains(group, method, tasks) for method in methods}
    values = [group.delta(method) for method in methods] + [gain for part in gains.values() for gain in part]
    finite = [value for value in values if math.isfinite(value)]
    scale = round_scale(min([*finite, -1.0]), max([*finite, 0.0]), 2.0, 98.0, about=6)
    bars = tuple(_bar(group, method, gains[method], tasks, scale) for method in methods)
    marks = tuple((_mark(index), task.name) for index, task in enumerate(tasks))
    return BarPlot(bars, _axis(scale), marks)


def _gains(group: Group, method: str, tasks: Sequence[Task]) -> list[float]:
    primary = {task.name: group.primary(task) for task in tasks}
    return [
        relative_gain(
            task,
            group.score(method, task.name, primary[task.name]),
            group.score(EXPERTS, task.name, primary[task.name]),
        )
        for task in tasks
    ]


def _bar(group: Group, method: str, gains: Sequence[float], tasks: Sequence[Task], scale: Scale) -> Bar:
    delta = group.delta(method)
    parts = [_line(scale(tick), "grid") for tick in scale.ticks(6)] + [_line(scale(0.0), "zero")]
    if math.isfinite(delta):
        left, right = sorted((scale(delta), scale(0.0)))
        parts.append(element("rect", x=f"{left:.2f}%", width=f"{right - left:.2f}%", y="50%", height=BAR_HEIGHT, rx=2))
    for index, (gain, task) in enumerate(zip(gains, tasks, strict=True)):
        if math.isfinite(gain):
            tip = element("title", f"{task.name}: {percent(gain)}")
            parts.append(element("text", _mark(index), tip, x=f"{scale(gain):.2f}%", y="50%", class_="mark"))
    name = describe(method).name
    title = f"{name}: {percent(delta)}"
    svg = element("svg", element("title", title), *parts, role="img", width="100%", height="100%")
    return Bar(name, family(group.of(method)[0]), method == group.best, percent(delta), svg)


def _line(position: float, kind: str) -> Markup:
    where = f"{position:.2f}%"
    return element("line", x1=where, x2=where, y1="0", y2="100%", class_=kind)


def _axis(scale: Scale) -> Markup:
    labels = [
        element("text", tick_label(tick) + " %", x=f"{scale(tick):.2f}%", y=14, class_="tick")
        for tick in scale.ticks(6)
    ]
    return element("svg", *labels, width="100%", height=20, aria_hidden="true")


def _mark(index: int) -> str:
    return MARKS[index % len(MARKS)]


# -- features against the experts', tap by tap --------------------------------------------------------------

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 30
LOWEST = -1.0
OTHER_LINES = ("line-2", "line-3", "line-4", "line-5", "line-6", "line-7")


@dataclass(frozen=True)
class Measure:
    """A column of `AlignmentRow` that is plotted."""

    field: str
    name: str
    direction: str


MEASURES = (
    Measure("cosine_distance", "Cosine distance to the expert's features", "lower is better"),
    Measure("explained_variance", "Variance of the expert's features explained", "higher is better, 1 is perfect"),
)


@dataclass(frozen=True)
class LinePlots:
    """One measure: a small plot for each task, all with the same scale."""

    measure: Measure
    plots: tuple[tuple[str, Markup], ...]
    clipped: bool


def alignment_plots(rows: Sequence[AlignmentRow], best: str | None) -> list[LinePlots]:
    """Return small multiples of the feature distances: one set for each measure, one plot for each task."""
    return [_line_plots(rows, measure, line_styles(rows, best)) for measure in MEASURES] if rows else []


def line_styles(rows: Sequence[AlignmentRow], best: str | None) -> dict[str, str]:
    """Return the CSS classes of each method's line; methods without re-alignment are dashed."""
    methods = list(dict.fromkeys(row.method for row in rows))
    colours = iter(["merged", *OTHER_LINES] if methods and "+" not in methods[0] else OTHER_LINES)
    styles = {}
    for method in methods:
        colour = "realigned" if method == best else next(colours, OTHER_LINES[-1])
        styles[method] = colour if "+" in method else f"{colour} before"
    return styles


def _line_plots(rows: Sequence[AlignmentRow], measure: Measure, styles: dict[str, str]) -> LinePlots:
    values = [value for row in rows if math.isfinite(value := getattr(row, measure.field))]
    top = 1.0 if measure.field == "explained_variance" else max(values, default=1.0)
    y = round_scale(max(min([*values, 0.0]), LOWEST), top, HEIGHT - BOTTOM, TOP, about=4)
    taps = list(dict.fromkeys(row.tap for row in rows))
    tasks = dict.fromkeys(row.task for row in rows)
    plots = []
    for task in tasks:
        lines = {
            method: {row.tap: getattr(row, measure.field) for row in rows if (row.task, row.method) == (task, method)}
            for method in styles
        }
        plots.append((task, _line_plot(f"{measure.name}, {task}", lines, styles, taps, y)))
    return LinePlots(measure, tuple(plots), any(value < y.low for value in values))


def _line_plot(
    title: str, lines: dict[str, dict[str, float]], styles: dict[str, str], taps: Sequence[str], y: Scale
) -> Markup:
    step = (WIDTH - LEFT - RIGHT) / max(len(taps), 1)
    x = {tap: LEFT + step * (index + 0.5) for index, tap in enumerate(taps)}
    parts = [element("title", title)]
    for tick in y.ticks(4):
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_=kind))
        parts.append(element("text", tick_label(tick), x=LEFT - 7, y=y(tick), class_="tick left"))
    for tap, position in x.items():
        parts.append(element("text", tap, x=position, y=HEIGHT - 10, class_="tick"))
    parts += [_series(method, styles[method], values, x, y) for method, values in lines.items()]
    return element("svg", *parts, role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}")


def _series(method: str, style: str, values: dict[str, float], x: dict[str, float], y: Scale) -> Markup:
    points = [(tap, x[tap], values[tap]) for tap in x if math.isfinite(values.get(tap, math.nan))]
    path = " ".join(f"{left:.1f},{y(value):.1f}" for _, left, value in points)
    name = describe(method).name
    dots = [
        element("circle", element("title", f"{name}, {tap}: {value:.3f}"), cx=left, cy=y(value), r=3.5)
        for tap, left, value in points
    ]
    return element("g", element("polyline", points=path), *dots, class_=f"series {style}")


def alignment_cell(value: float) -> str:
    """Return a number of the alignment table, an en dash where there is none."""
    return tick_label(float(f"{value:.3f}")) if math.isfinite(value) else MISSING
