"""The paper's lambda curves: every expert's decoder on base + lambda * task vector, one panel a decoder."""

from __future__ import annotations

import math

from simo_merge.affinity.sweep import LambdaSweep
from simo_merge.report.affinity.drawing import FAINT, GRID, SIZE, Dot, Drawing, Path, Text, text_width
from simo_merge.report.affinity.shades import LINES
from simo_merge.report.svg import Scale, round_scale, tick_label

WIDTH, HEIGHT, COLUMNS = 300.0, 220.0, 3
LEFT, RIGHT, TOP, BOTTOM, KEY = 44.0, 14.0, 42.0, 40.0, 22.0


def lambda_curves(sweep: LambdaSweep) -> Drawing:
    """A panel for each decoder: its metric over its expert's, 1 is the expert, along each expert's task vector.

    Errors are inverted, so that higher is better in all panels; all have one scale. The decoder's own task vector is
    drawn thicker.

    Source: arXiv 2504.11268, figures 3, 5 and 6.
    """
    values = sweep.normalised
    finite = [value for value in values.flatten().tolist() if math.isfinite(value)]
    across = min(COLUMNS, len(sweep.tasks))
    down = math.ceil(len(sweep.tasks) / across)
    entries = [f"along {task}" for task in sweep.tasks]
    step = text_width(entries) + 46.0
    per_line = max(1, int((across * WIDTH - LEFT) // step))
    height = down * HEIGHT + KEY * math.ceil(len(entries) / per_line) + 10.0
    drawing = Drawing(across * WIDTH, height, "Performance of every decoder along every task vector")
    at_y = round_scale(min([0.0, *finite]), max([1.0, *finite]), HEIGHT - BOTTOM, TOP)
    low, high = sweep.lambdas[0], sweep.lambdas[-1]
    at_x = Scale(low, high if high > low else low + 1.0, LEFT, WIDTH - RIGHT)
    for t in range(len(sweep.tasks)):
        _panel(drawing, sweep, t, (t % across * WIDTH, t // across * HEIGHT), at_x, at_y)
    for index, entry in enumerate(entries):
        x, y = LEFT + index % per_line * step, down * HEIGHT + 6.0 + KEY * (index // per_line)
        drawing.add(Path(((x, y), (x + 24.0, y)), LINES[index % len(LINES)], 2.0), Text(x + 30.0, y, entry))
    return drawing


def _panel(
    drawing: Drawing, sweep: LambdaSweep, task: int, corner: tuple[float, float], at_x: Scale, at_y: Scale
) -> None:
    x0, y0 = corner
    metric = f"{sweep.names[task]}, relative to the expert"
    drawing.add(Text(x0 + LEFT, y0 + 12.0, sweep.tasks[task], bold=True))
    drawing.add(Text(x0 + LEFT, y0 + 26.0, metric, fill=FAINT, size=SIZE - 2))
    for tick in at_y.ticks(4):
        y = y0 + at_y(tick)
        strong = abs(tick - 1) < 1e-9
        drawing.add(Path(((x0 + LEFT, y), (x0 + WIDTH - RIGHT, y)), FAINT if strong else GRID))
        drawing.add(Text(x0 + LEFT - 6.0, y, tick_label(tick), "end", FAINT, SIZE - 2))
    for tick in at_x.ticks(4):
        x = x0 + at_x(tick)
        drawing.add(Path(((x, y0 + HEIGHT - BOTTOM), (x, y0 + HEIGHT - BOTTOM + 4.0)), FAINT))
        drawing.add(Text(x, y0 + HEIGHT - BOTTOM + 13.0, tick_label(tick), "middle", FAINT, SIZE - 2))
    drawing.add(Text(x0 + (LEFT + WIDTH - RIGHT) / 2, y0 + HEIGHT - 12.0, "lambda", "middle", FAINT, SIZE - 1))
    others = [s for s in range(len(sweep.tasks)) if s != task]
    for s in (*others, task):  # the own one on top
        _line(drawing, sweep, s, task, corner, at_x, at_y)


def _line(
    drawing: Drawing, sweep: LambdaSweep, source: int, task: int, corner: tuple[float, float], at_x: Scale, at_y: Scale
) -> None:
    colour, own = LINES[source % len(LINES)], source == task
    points = []
    for lam, value in zip(sweep.lambdas, sweep.normalised[source, :, task].tolist(), strict=True):
        if math.isfinite(value):
            points.append((lam, value, corner[0] + at_x(lam), corner[1] + at_y(value)))
    if len(points) > 1:
        drawing.add(Path(tuple((x, y) for _, _, x, y in points), colour, 2.6 if own else 1.4))
    for lam, value, x, y in points:
        told = f"{sweep.tasks[task]} at {lam:g} along {sweep.tasks[source]}: {value:.3f}"
        drawing.add(Dot(x, y, 2.8 if own else 1.9, colour, told))
