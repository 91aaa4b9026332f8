"""Draws the figures of the benchmarks from the results files in benchmarks/results.

    python benchmarks/draw_figures.py            # docs/figures/NAME.svg for every results file that is there
    python benchmarks/draw_figures.py --check    # exit with 1 where a figure is not what the results say

Files of `budget.py`, `sample_efficiency.py`, `scaling_tasks.py` and `realign_quality.py` are found by their names:
`budget-rooms.json` becomes `budget-rooms.svg`. No point is drawn that is not in them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import budget
from bench.chart import Mark, Panel, Series, chart
from bench.checks import read_labels, used
from bench.curves import AXES, curve
from simo_merge.results import ResultRow, read_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
DELTA = "Δ against the experts, %"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="DIR")
    given = parser.parse_args(arguments)
    stale = 0
    for name, draw in DRAWN.items():
        for path in sorted(given.results.glob(f"{name}-*.json")):
            if path.stem.endswith("-crossings"):
                continue
            rows = [row for row in read_results(path)[1] if math.isfinite(row.delta_ratio)]
            picture, figure = draw(rows), given.figures / f"{path.stem}.svg"
            if not picture or (figure.is_file() and figure.read_text(encoding="utf-8") == picture):
                continue
            stale += 1
            if given.check:
                print(f"{figure}: not what {path} says; run benchmarks/draw_figures.py")
                continue
            figure.parent.mkdir(parents=True, exist_ok=True)
            figure.write_text(picture, encoding="utf-8")
            print(f"{figure}: drawn")
    return 1 if given.check and stale else 0


def draw_budget(rows: Sequence[ResultRow]) -> str:
    """A panel an axis: delta against steps, seconds, and seconds with the experts' training."""
    experts = [row for row in rows if row.method == "experts"]
    panels = []
    for axis in AXES:
        series = []
        for name, same in budget.curves(rows).items():
            marks = tuple(Mark(p.x, p.delta, p.spread) for p in curve(same, axis, experts))
            series.append(Series(name, marks, read_labels(same)))
        panels.append(Panel(f"Δ against {axis}", axis, tuple(series)))
    return chart(panels, DELTA)


def draw_samples(rows: Sequence[ResultRow]) -> str:
    """Delta against images that a fit saw; what reads their labels is dashed."""
    series = []
    for name in dict.fromkeys(row.method for row in rows if used(row)):
        same = [row for row in rows if row.method == name]
        series.append(Series(name, means(same, used), read_labels(same)))
    counts = tuple(float(count) for count in sorted({used(row) for row in rows} - {0}))
    return chart([Panel("Δ against calibration images", "images", tuple(series), ticks=counts)], DELTA)


def draw_scaling(rows: Sequence[ResultRow]) -> str:
    """Delta against the number of tasks, over all subsets and seeds."""
    series = []
    for name in dict.fromkeys(row.method for row in rows if row.method != "experts"):
        same = [row for row in rows if row.method == name]
        series.append(Series(name, means(same, lambda row: len(row.tasks)), read_labels(same)))
    sizes = tuple(float(size) for size in sorted({len(row.tasks) for row in rows}))
    return chart([Panel("Δ against merged tasks", "tasks", tuple(series), log=False, ticks=sizes)], DELTA)


def draw_realign(rows: Sequence[ResultRow]) -> str:
    """Delta against images, with joint training on all labels as a line beside it; nothing where there is no curve."""
    merge = next((row.method.partition("+")[0] for row in rows if _is_curve(rows, row)), "")
    found = [row for row in rows if row.method.startswith(f"{merge}+")]
    most = max(map(used, found), default=0)
    curves = [row for row in found if _is_curve(rows, row) or used(row) == most]
    if not curves:
        return ""
    counts = tuple(float(count) for count in sorted({used(row) for row in curves}))
    series = []
    for name in dict.fromkeys(row.method for row in curves):
        same = [row for row in curves if row.method == name]
        series.append(Series(name, means(same, used), read_labels(same)))
    for name in dict.fromkeys(row.method for row in rows if row.method.startswith("joint-") and "+" not in row.method):
        deltas = [row.delta_ratio for row in rows if row.method == name]
        level = tuple(Mark(count, statistics.fmean(deltas)) for count in (counts[:1] + counts[-1:]))
        series.append(Series(f"{name}, all training labels", level, dashed=True))
    return chart([Panel(f"{len(rows[0].tasks)} tasks", "calibration images", tuple(series), ticks=counts)], DELTA)


def _is_curve(rows: Sequence[ResultRow], row: ResultRow) -> bool:
    """Whether the row's re-alignment was fitted to several numbers of images."""
    return "+" in row.method and len({used(other) for other in rows if other.method == row.method}) > 1


def means(rows: Iterable[ResultRow], place: Callable[[ResultRow], int]) -> tuple[Mark, ...]:
    """Mean and standard deviation of delta at each place."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(place(row), []).append(row.delta_ratio)
    return tuple(
        Mark(float(x), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for x, values in sorted(found.items())
    )


DRAWN: dict[str, Callable[[Sequence[ResultRow]], str]] = {
    "budget": draw_budget,
    "samples": draw_samples,
    "scaling": draw_scaling,
    "realign": draw_realign,
}

if __name__ == "__main__":
    sys.exit(main())
