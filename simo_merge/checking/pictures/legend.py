"""What colours mean: classes, a bar of values, a ball of directions."""

from __future__ import annotations

import numpy as np
import torch

from simo_merge.checking.findings import percent
from simo_merge.checking.pictures.canvas import FAINT, Canvas, number, text_width
from simo_merge.checking.statistics import ClassStatistics, TaskStatistics, ValueStatistics
from simo_merge.colours import Picture
from simo_merge.tasks import Limits, Normals, Regression, Task

HEIGHT = 50
"""Height in pixels of the key to one task's colours."""
_LINE = 20


def limits_of(statistics: TaskStatistics) -> Limits | None:
    """The values at the ends of a task's colours, the same for every image of a sheet."""
    task = statistics.task
    if isinstance(task, Regression) and task.value_range is not None:
        return task.value_range
    if not isinstance(statistics, ValueStatistics) or not statistics.valid:
        return None
    return statistics.histogram.quantile(0.02), statistics.histogram.quantile(0.98)


def draw_key(canvas: Canvas, x: int, y: int, width: int, statistics: TaskStatistics) -> None:
    """A bar with its ends, or a ball with its directions, in a box `width` x `HEIGHT`."""
    task, limits = statistics.task, limits_of(statistics)
    if isinstance(task, Normals):
        side = HEIGHT - 12
        canvas.paste(ball(task, 4 * side), x, y + 4, side, side, smooth=True)
        for line, direction in enumerate(("x right", "y down", "z to viewer")):
            canvas.text(x + side + 6, y + 3 + 13 * line, direction, 11, colour=FAINT)
    elif limits is not None and task.out_channels == 1:
        bar = min(width, 160)
        values = torch.linspace(limits[0], limits[1], 64)[None, None].expand(1, 8, 64)
        canvas.paste(task.draw(values, None, limits), x, y + 4, bar, 10, smooth=False)
        unit = f" {task.unit}" if task.unit else ""
        canvas.text(x, y + 18, number(limits[0], 3), 11, colour=FAINT)
        canvas.text(x + bar, y + 18, f"{number(limits[1], 3)}{unit}", 11, "ra", FAINT)


def ball(task: Task, side: int) -> Picture:
    """A ball seen from the front, in the colours of its normals."""
    line = (2 * torch.arange(side) + 1) / side - 1
    x, y = line[None, :].expand(side, side), line[:, None].expand(side, side)
    rest = 1 - x * x - y * y
    inside = rest > 0
    drawn = task.draw(torch.stack([x, y, rest.clamp(min=0).sqrt()]), inside)
    return np.where(inside.numpy()[..., None], drawn, np.uint8(255))


def class_lines(statistics: ClassStatistics, width: int) -> int:
    """How many lines `draw_classes` needs."""
    return -(-len(statistics.task.classes) // _columns(statistics, width))


def draw_classes(canvas: Canvas, x: int, y: int, width: int, statistics: ClassStatistics) -> int:
    """Every class with its colour and share, in columns; returns the height that it took."""
    columns = _columns(statistics, width)
    lines = class_lines(statistics, width)
    entries = zip(statistics.task.classes, statistics.task.colours, statistics.shares, strict=True)
    for index, (name, colour, share) in enumerate(entries):
        left = x + (index // lines) * (width // columns)
        top = y + (index % lines) * _LINE
        canvas.box(left, top + 2, left + 14, top + 16, colour)
        canvas.text(left + 20, top + 2, f"{index} {name}", 12)
        name_width = text_width(f"{index} {name}", 12)
        canvas.text(left + 26 + name_width, top + 2, percent(float(share)) if share else "none", 12, colour=FAINT)
    return lines * _LINE


def _columns(statistics: ClassStatistics, width: int) -> int:
    longest = max(text_width(name, 12) for name in statistics.task.classes)
    return max(1, int(width // (longest + 110)))
