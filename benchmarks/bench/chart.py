"""Line charts as SVG: delta against something, one line a method, standard deviations as bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from simo_merge.report.svg import Scale, element, round_scale, tick_label

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8a5aab", "#c77700", "#3f3f3f", "#2aa1a8", "#a0522d")
WIDTH, HEIGHT = 460.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 30.0, 46.0
ROW = 18.0  # of the legend
SAMPLE, LETTER = 30.0, 6.6  # of the legend: width of a line's sample, and of a letter, rather too wide than too narrow


@dataclass(frozen=True)
class Mark:
    """A point: x, delta in percent, standard deviation."""

    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Series:
    """A line. dashed: for what is fitted with labels."""

    name: str
    marks: tuple[Mark, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart. log: whether x grows by factors; ticks: places of x that have a label, None for round ones."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    log: bool = True
    ticks: tuple[float, ...] | None = None


def chart(panels: Sequence[Panel], y_label: str) -> str:
    """Panels side by side with one legend below, as a whole SVG file."""
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    dashed = {series.name for panel in panels for series in panel.series if series.dashed}
    width = WIDTH * len(panels)
    entry = SAMPLE + LETTER * (2 + max(map(len, names)))
    columns = max(1, int((width - LEFT - RIGHT) / entry))
    height = HEIGHT + ROW * (1 + math.ceil(len(names) / columns))
    drawn = [
        element("g", *_panel(panel, colours, y_label), transform=f"translate({index * WIDTH:g},0)")
        for index, panel in enumerate(panels)
    ]
    legend = [
        _entry(name, colours[name], name in dashed, LEFT + entry * (index % columns), index // columns)
        for index, name in enumerate(names)
    ]
    if dashed:
        note = element("text", "dashed: fitted with labels", x=width - RIGHT, y=height - 6, text_anchor="end")
        legend.append(note)
    background = element("rect", width=width, height=height, fill="#ffffff")
    picture = element(
        "svg", background, *drawn, *legend,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", width=width, height=height,
        role="img", font_family="Helvetica, Arial, sans-serif", font_size=12.0,
    )  # fmt: skip
    return str(picture) + "\n"


def _panel(panel: Panel, colours: dict[str, str], y_label: str) -> list[Markup]:
    marks = [mark for series in panel.series for mark in series.marks]
    at_x, ticks = _x_axis(panel, [mark.x for mark in marks])
    low, high = min(m.y - m.spread for m in marks), max(m.y + m.spread for m in marks)
    at_y = round_scale(min(low, 0.0), max(high, 0.0), HEIGHT - BOTTOM, TOP)
    parts = [element("text", panel.title, x=LEFT, y=18.0, font_weight="bold")]
    for tick in at_y.ticks(5):
        y, strong = at_y(tick), abs(tick) < 1e-9
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#777777" if strong else "#dddddd"))
        parts.append(element("text", tick_label(tick), x=LEFT - 6, y=y + 4, text_anchor="end"))
    for tick in ticks:
        parts.append(_line(at_x(tick), HEIGHT - BOTTOM, at_x(tick), HEIGHT - BOTTOM + 4, "#777777"))
        parts.append(element("text", tick_label(tick), x=at_x(tick), y=HEIGHT - BOTTOM + 18, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", panel.x_label, x=middle, y=HEIGHT - 8, text_anchor="middle"))
    upright = f"translate(14,{(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)"
    parts.append(element("text", y_label, text_anchor="middle", transform=upright))
    for series in panel.series:
        parts += _drawn(series, at_x, at_y, colours[series.name])
    return parts


def _x_axis(panel: Panel, values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """Where an x lies, and the ticks: powers of ten with 2 and 5 between them, or round numbers."""
    start, end = LEFT + 8, WIDTH - RIGHT - 8
    low, high = min(values), max(values)
    if not panel.log:
        scale = Scale(low, high if high > low else low + 1, start, end)
        return scale, list(panel.ticks or scale.ticks(6))
    low, high = (low, high) if high > low else (low / 2, high * 2)
    scale = Scale(math.log10(low), math.log10(high), start, end)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return (lambda x: scale(math.log10(x))), list(panel.ticks or inside)


def _drawn(series: Series, at_x: Callable[[float], float], at_y: Scale, colour: str) -> list[Markup]:
    marks = sorted(series.marks, key=lambda mark: mark.x)
    path = " ".join(f"{at_x(mark.x):.2f},{at_y(mark.y):.2f}" for mark in marks)
    dash = "5 4" if series.dashed else None
    parts = [element("polyline", points=path, fill="none", stroke=colour, stroke_width=2.0, stroke_dasharray=dash)]
    for mark in marks:
        x = at_x(mark.x)
        if mark.spread:
            parts.append(_line(x, at_y(mark.y - mark.spread), x, at_y(mark.y + mark.spread), colour))
        told = f"{series.name}: {tick_label(mark.y)} % at {tick_label(mark.x)}"
        parts.append(element("circle", element("title", told), cx=x, cy=at_y(mark.y), r=3.5, fill=colour))
    return parts


def _entry(name: str, colour: str, dashed: bool, x: float, row: int) -> Markup:
    y = HEIGHT + 10 + ROW * row
    stroke = _line(x, y - 4, x + SAMPLE - 6, y - 4, colour, 2.0, "5 4" if dashed else None)
    return element("g", stroke, element("text", name, x=x + SAMPLE, y=y))


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, dash: str | None = None
) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, stroke_width=width, stroke_dasharray=dash)
