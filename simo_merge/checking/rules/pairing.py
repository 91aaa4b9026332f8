"""Do labels belong to their images?"""

from __future__ import annotations

import numpy as np

from simo_merge.checking.findings import Finding, Level
from simo_merge.checking.rules.files import KEPT
from simo_merge.checking.statistics import Fit, Statistics
from simo_merge.tasks import Regression

_FEWEST = 12
"""Images from which on own and wrong pairs are told apart."""
_PAIRED = 2.5
"""Standard errors above the wrong pairs that right ones have at least. Labels of the rooms: 21 with 12 images."""


def fit(statistics: Statistics) -> list[Finding]:
    """Labels whose edges do not meet the edges of their own image better than those of another."""
    found = []
    for name in statistics.edges.tasks:
        measured = statistics.edges.fit(name)
        if measured is None or measured.images < _FEWEST:
            continue
        lines = tuple(f"the label of {label} fits the image of {image}" for label, image in measured.better.items())
        level, message = _judge(measured, lines)
        if level == "failure" and isinstance(statistics.tasks[name], Regression):
            level = "warning"  # a map of which nothing is known may have edges where the image has none
        if level is not None:
            found.append(Finding(level, "pairing", message, name, tuple(measured.better)[:KEPT], lines[:KEPT]))
    return found


def _judge(measured: Fit, lines: tuple[str, ...]) -> tuple[Level | None, str]:
    hint = "Pair the files by name and not by their place in a list: names sort differently as text and as numbers."
    if len(lines) >= 2 and len(lines) >= 0.1 * measured.images:
        return "failure", f"labels belong to other images: {lines[0]}, and {len(lines) - 1} more like it. {hint}"
    if measured.z < _PAIRED:
        return "failure", (
            f"the edges of the labels meet the edges of their own images no better than those of other images "
            f"({measured.images} compared, {measured.z:.1f} standard errors apart, expected more than {_PAIRED:g}): "
            f"labels and images are probably paired wrongly, or shifted. {hint}"
        )
    doubtful = float(np.mean(np.array(measured.own) < 1))
    if doubtful > 0.4:
        return "warning", (
            f"{round(doubtful * measured.images)} of {measured.images} labels fit their image no better than another. "
            f"Look at the contact sheet. {hint}"
        )
    return None, ""
