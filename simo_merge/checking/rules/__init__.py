"""The rules: each looks at what was counted and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable

from simo_merge.checking.findings import Finding
from simo_merge.checking.rules import classes, files, images, normals, pairing, values
from simo_merge.checking.statistics import Statistics

Rule = Callable[[Statistics], list[Finding]]

RULES: tuple[Rule, ...] = (
    files.missing,
    files.unreadable,
    files.partial,
    files.splits,
    files.duplicates,
    images.sizes,
    images.brightness,
    images.one_colour,
    values.labelled,
    classes.absent,
    classes.shares,
    classes.void,
    values.eight_bit,
    values.unit,
    values.largest,
    values.zero_disparity,
    values.lost_infinity,
    values.depth_and_disparity,
    normals.lengths,
    normals.axes,
    normals.signs,
    pairing.fit,
)
"""Every rule, in the order of its findings."""

__all__ = ["RULES", "Rule"]
