"""Do class ids mean what the names say?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simo_merge.checking import facts
from simo_merge.checking.findings import Finding, named, percent
from simo_merge.checking.statistics import ClassStatistics, LabelsByClass, Statistics

_ENOUGH = 20
"""Images from which on shares of classes mean something."""
_NO_SURFACE = (
    "sky",
    "background",
    "void",
    "unlabelled",
    "unlabeled",
    "unknown",
    "other",
    "clutter",
    "window",
    "mirror",
)
"""Classes that may well have no depth."""


def absent(statistics: Statistics) -> list[Finding]:
    """Classes that do not occur; the first or last alone hints at ids that are shifted by one."""
    found = []
    for name, counted in _segmentations(statistics):
        gone, classes = counted.absent, counted.task.classes
        if not gone or not counted.valid:
            continue
        at_an_end = len(gone) == 1 and len(classes) > 2 and gone[0] in (classes[0], classes[-1])
        if at_an_end and counted.images >= _ENOUGH:
            first = gone[0] == classes[0]
            message = (
                f"the {'first' if first else 'last'} class, {gone[0]}, never occurs in {counted.images} images and all "
                f"{len(classes) - 1} others do. Class ids are probably shifted by one, {'up' if first else 'down'}: "
                f"is the smallest id in the files 0 or 1, and which one means void? Look at the legend of the contact "
                f"sheet. If there is no {gone[0]} in this data set, take it out of the classes."
            )
            found.append(Finding("failure", "shifted-classes", message, name))
        else:
            verb = "does" if len(gone) == 1 else "do"
            message = f"{len(gone)} of {len(classes)} classes {verb} not occur: {named(gone, 8)}."
            found.append(Finding("note", "absent-classes", message, name))
    return found


def shares(statistics: Statistics) -> list[Finding]:
    """Shares of the classes against those that are known of this data set."""
    found = []
    for name, counted in _segmentations(statistics):
        known = facts.shares_of(statistics.data, counted.task.classes)
        if known is None or counted.images < _ENOUGH or not counted.valid:
            continue
        expected = np.array(list(known.percent.values())) / 100
        apart = distance(counted.shares, expected)
        shift, shifted = best_shift(counted.shares, expected)
        top = np.argsort(counted.shares)[::-1][:3]
        seen = ", ".join(f"{counted.task.classes[i]} {percent(float(counted.shares[i]))}" for i in top)
        usual = np.argsort(expected)[::-1][:3]
        wanted = ", ".join(f"{counted.task.classes[i]} {percent(float(expected[i]))}" for i in usual)
        if apart > 0.12 and shifted < 0.5 * apart:
            message = (
                f"class ids are shifted by {shift:+d}: the largest classes are {seen}, expected {wanted}; moved by one "
                f"id the shares would fit ({percent(1 - shifted)} instead of {percent(1 - apart)} in common)."
            )
            found.append(Finding("failure", "shifted-classes", message, name))
        elif apart > 0.4:
            message = (
                f"the shares of the classes are unusual for {statistics.data}: the largest are {seen}, expected about "
                f"{wanted} (only {percent(1 - apart)} in common). Are the ids those of this list of classes?"
            )
            found.append(Finding("warning", "class-shares", message, name))
    return found


def distance(seen: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """Total variation of two distributions, 0 to 1: half the sum of differences."""
    return float(np.abs(seen / max(seen.sum(), 1e-12) - expected / expected.sum()).sum() / 2)


def best_shift(seen: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> tuple[int, float]:
    """By how much ids are too large (1) or too small (-1), whichever fits better, and the distance that is left.

    The class that fell off one end (as void) is left out on both sides.
    """
    up, down = distance(seen[1:], expected[:-1]), distance(seen[:-1], expected[1:])
    return (1, up) if up <= down else (-1, down)


def void(statistics: Statistics) -> list[Finding]:
    """A first or last class that lies exactly where another task has no label: void that is read as a class."""
    found = []
    for pair in statistics.by_class:
        classes = pair.segmentation.classes
        for index in {0, len(classes) - 1}:
            if classes[index].lower() not in _NO_SURFACE and _is_void(pair, index):
                share = pair.missing[index] / pair.pixels[index]
                message = (
                    f"the class {classes[index]} (index {index}) lies where {pair.other.name} has no label "
                    f"({percent(float(share))} of its pixels), and the other classes do not: probably it is the id of "
                    "void, read as a class. List that id under invalid, and mind first_class."
                )
                found.append(Finding("failure", "void-class", message, pair.segmentation.name))
    return found


def _is_void(pair: LabelsByClass, index: int) -> bool:
    pixels, missing = int(pair.pixels[index]), int(pair.missing[index])
    others, others_missing = int(pair.pixels.sum()) - pixels, int(pair.missing.sum()) - missing
    if others == 0 or pixels < 0.001 * (pixels + others):
        return False
    return missing > 0.95 * pixels and missing > 0.5 * pair.missing_in_all and others_missing < 0.2 * others


def _segmentations(statistics: Statistics) -> list[tuple[str, ClassStatistics]]:
    return [(name, counted) for name, counted in statistics.labels.items() if isinstance(counted, ClassStatistics)]
