"""Result rows as a plain table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simo_merge.results import ResultRow


def table(rows: Sequence[ResultRow]) -> str:
    """The rows with every task's metrics that a reader compares first, aligned in columns."""
    tasks = rows[0].tasks
    head = ["method", *(f"{t} {_first_metric(rows[0], t)}" for t in tasks)]
    head += ["delta %", "eq. 2 %", "labels", "images", "passes", "fitted", "fit s"]
    lines = [head]
    for row in rows:
        cells = [row.method]
        cells += [_number(row.per_task[t][_first_metric(row, t)], 4) for t in tasks]
        cells += [_number(row.delta_ratio, 2, signed=True), _number(row.delta_eq2, 2, signed=True)]
        cells += [str(row.labels), str(row.images), f"{row.encoder_passes:.3g}", f"{row.trainable_parameters:,}"]
        lines.append([*cells, _number(row.fit_seconds, 2)])
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first column flush left, the others right; the last one left where it holds sentences."""
    last = len(lines[0]) - 1
    sentences = any(" " in line[last] and len(line[last]) > 40 for line in lines)
    widths = [max(len(line[i]) for line in lines) for i in range(last + 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 or (i == last and sentences) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _first_metric(row: ResultRow, task: str) -> str:
    return next(iter(row.per_task[task]))


def _number(value: float, digits: int, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    value = round(value, digits) + 0.0  # no "-0.00"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
