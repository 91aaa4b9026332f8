"""A grouping: which tasks share which encoder, and what each is expected to gain or lose."""

from __future__ import annotations

import math

from simo_merge.affinity.grouping import Grouping
from simo_merge.colours import Rgb
from simo_merge.report.affinity.drawing import FAINT, INK, SIZE, Box, Drawing, Path, Text, text_width
from simo_merge.report.affinity.shades import digits

ROW, EDGE, HEAD, BETWEEN, BAR = 26.0, 14.0, 56.0, 12.0, 220.0
BADGE = 92.0
_CARD: Rgb = (241, 238, 229)
_LOSS: Rgb = (185, 80, 26)
_GAIN: Rgb = (10, 117, 112)


def grouping_picture(grouping: Grouping) -> Drawing:
    """A card for each encoder with its tasks, and a bar of each task's gain; 0 is an encoder of its own."""
    gains = list(grouping.per_task.values())
    spread = max(abs(gain) for gain in gains)
    low, high = min([0.0, *gains]), max([0.0, *gains])
    names = text_width(list(grouping.per_task))
    numbers = text_width([digits(gain, spread) for gain in gains]) + 14.0
    start = EDGE + BADGE + names + 26.0
    told = _told(grouping)
    width = max(start + BAR + numbers + EDGE, *(text_width([line], SIZE) + 2 * EDGE for line in told))
    height = HEAD + sum(len(group) * ROW + BETWEEN for group in grouping.groups) + 46.0
    many = "one encoder" if grouping.encoders == 1 else f"{grouping.encoders} encoders"
    drawing = Drawing(width, height, f"Grouping into {many} by {grouping.measure}")
    drawing.add(Text(EDGE, 16.0, drawing.title, size=SIZE + 2, bold=True))
    drawing.add(Text(EDGE, 36.0, "expected gain of each task, in the measure's unit; 0: alone", fill=FAINT))

    def at(value: float) -> float:
        return start + (value - low) / (high - low) * BAR if high > low else start + BAR

    y = HEAD
    for index, group in enumerate(grouping.groups):
        tall = len(group) * ROW
        drawing.add(Box(EDGE, y, width - 2 * EDGE, tall, _CARD, 6.0))
        drawing.add(Text(EDGE + 10.0, y + tall / 2, f"encoder {index + 1}", bold=True))
        for task in group:
            gain, middle = grouping.per_task[task], y + ROW / 2
            drawing.add(Text(start - 12.0, middle, task, "end"))
            left, right = sorted((at(0.0), at(gain)))
            drawing.add(Path(((at(0.0), y), (at(0.0), y + ROW)), FAINT))
            drawing.add(Box(left, middle - 7.0, max(right - left, 1.0), 14.0, _LOSS if gain < 0 else _GAIN, 2.0))
            drawing.add(Text(start + BAR + 8.0, middle, digits(gain, spread), fill=INK, size=SIZE - 1))
            y += ROW
        y += BETWEEN
    for index, line in enumerate(told):
        drawing.add(Text(EDGE, y + 8.0 + 18.0 * index, line, fill=FAINT))
    return drawing


def _told(grouping: Grouping) -> list[str]:
    """The sum, and how far behind the next best grouping is."""
    spread = max(abs(grouping.value), 1e-12)
    lines = [f"together {digits(grouping.value, spread)}, by {grouping.method}"]
    if grouping.runner_up is not None and not math.isnan(grouping.margin):
        other = " | ".join(" + ".join(group) for group in grouping.runner_up)
        lines.append(f"next best, by {digits(grouping.margin, grouping.margin)} less: {other}")
    return lines
