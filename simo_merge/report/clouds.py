"""Distributions of features as plots: for each task a row of taps, as merged above, re-aligned below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from simo_merge.report.contents import FeatureCloud
from simo_merge.report.svg import Scale, element

SIDE, GAP, TOP, LEFT = 130.0, 10.0, 22.0, 78.0
BEYOND = 0.5  # percent of the points of each distribution that may lie outside the frame, at every side
MARGIN = 0.05

Points = npt.NDArray[np.float32]


def cloud_plots(clouds: Sequence[FeatureCloud]) -> list[tuple[str, Markup]]:
    """Return one drawing for each task: a column a tap, the merged features above and the re-aligned ones below.

    Both of a column have one scale, and the expert's points lie behind each.
    """
    tasks = dict.fromkeys(cloud.task for cloud in clouds)
    return [(task, _drawing([cloud for cloud in clouds if cloud.task == task])) for task in tasks]


def _drawing(clouds: Sequence[FeatureCloud]) -> Markup:
    rows = [("merged", "merged")]
    if any(cloud.aligned is not None for cloud in clouds):
        rows.append(("realigned", "re-aligned"))
    task = clouds[0].task
    parts = [element("title", f"Features of {task}, by depth, in the expert's two main directions")]
    for row, (_, label) in enumerate(rows):
        middle = TOP + row * (SIDE + GAP) + SIDE / 2
        parts.append(element("text", label, x=LEFT - 10, y=middle, class_="tick left"))
    for column, cloud in enumerate(clouds):
        left = LEFT + column * (SIDE + GAP)
        share = f"{100 * sum(cloud.explained):.0f} % of variance"
        head = element("text", cloud.tap, element("title", share), x=left + SIDE / 2, y=TOP / 2, class_="tick")
        parts.append(head)
        scales = _scales(cloud)
        for row, (family, _) in enumerate(rows):
            top = TOP + row * (SIDE + GAP)
            points = cloud.merged if family == "merged" else cloud.aligned
            parts.append(_frame(cloud.expert, points, family, scales, left, top))
    width = LEFT + len(clouds) * (SIDE + GAP)
    height = TOP + len(rows) * (SIDE + GAP)
    return element("svg", *parts, role="img", viewBox=f"0 0 {width:g} {height:g}")


def _frame(
    expert: Points, points: Points | None, family: str, scales: tuple[Scale, Scale], left: float, top: float
) -> Markup:
    drawn = [element("rect", width=SIDE, height=SIDE, rx=3, class_="cloud-frame")]
    drawn.append(_dots(expert, "reference", scales))
    if points is not None:
        drawn.append(_dots(points, family, scales))
    return element("g", *drawn, transform=f"translate({left:g},{top:g})")


def _dots(points: Points, family: str, scales: tuple[Scale, Scale]) -> Markup:
    """Every point as a line of no length with round ends: a tenth of what circles would take."""
    x, y = scales
    inside = [(a, b) for a, b in points.tolist() if x.low <= a <= x.high and y.low <= b <= y.high]
    return element("path", d="".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in inside), class_=f"cloud {family}")


def _scales(cloud: FeatureCloud) -> tuple[Scale, Scale]:
    """Scales that hold all but the outermost points of each distribution."""
    known = [points for points in (cloud.expert, cloud.merged, cloud.aligned) if points is not None and len(points)]
    scales = []
    for axis in (0, 1):
        ends = [np.percentile(points[:, axis], (BEYOND, 100 - BEYOND)) for points in known] or [np.array([-1.0, 1.0])]
        low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
        room = MARGIN * (high - low) or 1.0
        start, end = (0.0, SIDE) if axis == 0 else (SIDE, 0.0)  # up is more
        scales.append(Scale(low - room, high + room, start, end))
    return scales[0], scales[1]
