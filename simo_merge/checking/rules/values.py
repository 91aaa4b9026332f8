"""Are depths and disparities numbers of the right kind, unit and depth of bits?"""

from __future__ import annotations

import re

import numpy as np

from simo_merge.checking import facts
from simo_merge.checking.findings import Finding, named, percent
from simo_merge.checking.rules.files import KEPT
from simo_merge.checking.statistics import Statistics, ValueStatistics
from simo_merge.tasks import Depth, Disparity

_BYTE = 256
_ENOUGH_PIXELS = 20_000
_PLATEAU = 0.05


def labelled(statistics: Statistics) -> list[Finding]:
    """Tasks and images without labels."""
    found = []
    for name, counted in statistics.labels.items():
        if not counted.images:
            continue
        empty = tuple(counted.empty[:KEPT])
        if not counted.valid:
            message = "no pixel of any image has a label: is the invalid value right, or the mask the wrong way round?"
            found.append(Finding("failure", "no-labels", message, name))
        elif counted.empty:
            many = len(counted.empty) > 0.2 * counted.images
            verb = "has" if len(empty) == 1 else "have"
            message = f"{len(counted.empty)} of {counted.images} images {verb} no label at all: {named(empty)}."
            found.append(Finding("warning" if many else "note", "images-without-label", message, name, empty))
        if 0 < counted.valid_share < 0.1:
            message = f"only {percent(counted.valid_share)} of the pixels have a label; is the invalid value right?"
            found.append(Finding("warning", "few-labels", message, name))
    return found


def eight_bit(statistics: Statistics) -> list[Finding]:
    """Numbers of 16 bits that were written, or read, with 8."""
    found = []
    for name, counted in _maps(statistics):
        stored = statistics.stored.get(name)
        as_bytes = stored is not None and bool(stored.types & {"uint8", "int8"})
        declared = stored is not None and stored.declared_bits == 8
        distinct = counted.distinct
        few = distinct is not None and len(distinct) <= _BYTE
        if counted.valid < _ENOUGH_PIXELS or not (few or as_bytes):
            continue
        if distinct is not None and len(distinct) == 1:
            message = f"every valid pixel is {counted.highest:g} {counted.task.unit}: this is no map of {name}."
            found.append(Finding("failure", "constant", message, name))
            continue
        count = len(distinct) if distinct is not None else None
        seen = f"only {count} different values occur in {counted.images} images" if few else "the files have 8 bits"
        step = f", in steps of about {_step(distinct):.3g}" if few and distinct is not None else ""
        message = (
            f"{seen} ({counted.lowest:.4g} to {counted.highest:.4g} {counted.task.unit}{step}): no more than 8 bits "
            "hold. Files of 16 bits were probably read or converted as 8 bits (cv2.imread without IMREAD_UNCHANGED, "
            "PIL's convert); write them again from the originals."
        )
        found.append(Finding("warning" if declared else "failure", "eight-bit", message, name))
    return found


def _step(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.median(np.diff(values)))


def unit(statistics: Statistics) -> list[Finding]:
    """Values that cannot be of the unit that the task states."""
    found = []
    for name, counted in _maps(statistics):
        if not counted.valid:
            continue
        median, what = counted.median, counted.task.unit
        message = ""
        if isinstance(counted.task, Depth) and what == "m" and not 0.05 <= median <= 500:
            guess = "millimetres" if 500 < median < 100_000 else "another unit, or not scaled,"
            message = f"the median depth is {median:.4g} m; the numbers are probably in {guess} and need a scale."
        width = _width(counted.task, statistics)
        if width is not None:
            near = counted.histogram.quantile(0.99)
            if near > width / 4:
                message = (
                    f"1 % of the disparities are above {near:.4g} px, in an image {width} wide; the stored integers "
                    "probably need a scale (Cityscapes: (p - 1) / 256 for p > 0)."
                )
            elif counted.highest < 1:
                message = (
                    f"the largest disparity is {counted.highest:.4g} px, less than one pixel; these are probably "
                    "fractions of the largest stored number (p / 65535, as in MTAN's arrays), not pixels."
                )
        elif what == "published" and counted.highest > facts.PUBLISHED_DISPARITY_AT_MOST:
            message = (
                f"the largest disparity is {counted.highest:.4g}; in the published unit, p / 65535, 1 is the most."
            )
        if message:
            found.append(Finding("failure", "unit", message, name))
    return found


def _width(task: object, statistics: Statistics) -> int | None:
    """Width of the image whose pixels a disparity counts; None where it counts none."""
    match = re.fullmatch(r"px(?:@(\d+))?", task.unit) if isinstance(task, Disparity) else None
    if match is None or not statistics.images.sizes:
        return None
    return int(match[1]) if match[1] else statistics.images.sizes.most_common(1)[0][0][1]


def largest(statistics: Statistics) -> list[Finding]:
    """A largest value that fills a part of the image: the file's sign for "none"."""
    found = []
    for name, counted in _maps(statistics):
        stored = statistics.stored.get(name)
        limit = facts.DEPTH_AT_MOST.get(statistics.data)
        what = f"{counted.highest:.4g} {counted.task.unit}"
        share = counted.at_highest / max(counted.valid, 1)
        if counted.valid and isinstance(counted.task, Depth) and limit is not None and counted.highest > limit[0]:
            message = f"depths reach {what}, and {statistics.data} has none above {limit[0]:g}: {limit[1]}."
            found.append(Finding("failure", "largest", message, name))
        elif stored is not None and stored.full > 0.001 * stored.pixels:
            message = (
                f"{percent(stored.full / stored.pixels)} of the valid pixels hold the largest number that the file's "
                f"type has ({what}): that is usually the sign for no label; list it under invalid."
            )
            found.append(Finding("failure", "largest", message, name))
        elif share > _PLATEAU and counted.distinct is None:
            message = (
                f"{percent(share)} of the valid pixels have exactly the largest value, {what}: clipped, or no label?"
            )
            found.append(Finding("warning", "largest", message, name))
    return found


def zero_disparity(statistics: Statistics) -> list[Finding]:
    """A disparity of 0 is infinitely far; missing measurements are stored as 0 as well."""
    found = []
    for name, counted in _maps(statistics):
        zeros = counted.zeros / max(counted.valid, 1)
        if not isinstance(counted.task, Disparity) or zeros < 0.005:
            continue
        sky = _sky(statistics, name)
        if sky is not None and sky < 0.5:
            seen = f"and only {percent(sky)} of those lie on sky"
        elif sky is None and counted.valid_share > 0.999:
            seen = "and hardly any pixel is invalid"
        else:
            continue
        message = (
            f"{percent(zeros)} of the valid disparities are exactly 0, which means infinitely far, {seen}. Missing "
            "measurements were probably taken for infinity: in most files the stored 0 means that there is none; list "
            "it under invalid, before scale and offset are applied."
        )
        found.append(Finding("failure", "zero-disparity", message, name))
    return found


def lost_infinity(statistics: Statistics) -> list[Finding]:
    """Infinity that was taken for a missing measurement."""
    found = []
    for name, counted in _maps(statistics):
        stored = statistics.stored.get(name)
        if not isinstance(counted.task, Disparity) or not counted.valid:
            continue
        if stored is not None and stored.zero_is_invalid:
            message = (
                "the stored number that stands for a disparity of 0, infinitely far, is listed under invalid; it is a "
                "measurement: take it out, and leave the one that means that there is none."
            )
            found.append(Finding("failure", "lost-infinity", message, name))
        elif counted.zeros == 0 and _sky_is_missing(statistics, name):
            message = (
                "no disparity is 0 (infinitely far), and the sky has no label where everything else has one. Files may "
                "leave the sky out; but if they store it as infinitely far, that was taken for a missing measurement."
            )
            found.append(Finding("note", "lost-infinity", message, name))
    return found


def depth_and_disparity(statistics: Statistics) -> list[Finding]:
    """Depth times disparity is focal length times baseline, the same for all pixels of an image."""
    found = []
    for pair in statistics.stereo:
        if not pair.spread:
            continue
        wrong = [key for key, spread in zip(pair.keys, pair.spread, strict=True) if spread > 0.05]
        if wrong:
            message = (
                f"in {len(wrong)} of {len(pair.spread)} images {pair.depth.name} times {pair.disparity.name} is not "
                f"the same for all pixels (it varies by {percent(float(np.median(pair.spread)))} in the middle image): "
                f"{named(wrong)}. One of the two is mis-scaled, lacks its offset, or is of another image."
            )
            keys = tuple(wrong[:KEPT])
            found.append(Finding("failure", "depth-disparity", message, pair.disparity.name, keys))
    return found


def _maps(statistics: Statistics) -> list[tuple[str, ValueStatistics]]:
    """Statistics of the depths and disparities."""
    return [
        (name, counted)
        for name, counted in statistics.labels.items()
        if isinstance(counted, ValueStatistics) and isinstance(counted.task, Depth | Disparity)
    ]


def _sky(statistics: Statistics, name: str) -> float | None:
    """Share of a disparity's zeros that lie on the class sky; None where there is no such class."""
    for pair in statistics.by_class:
        classes = [label.lower() for label in pair.segmentation.classes]
        if pair.other.name == name and "sky" in classes and pair.zero.sum():
            return float(pair.zero[classes.index("sky")] / pair.zero.sum())
    return None


def _sky_is_missing(statistics: Statistics, name: str) -> bool:
    for pair in statistics.by_class:
        classes = [label.lower() for label in pair.segmentation.classes]
        if pair.other.name == name and "sky" in classes:
            sky = classes.index("sky")
            others, missing = pair.pixels.sum() - pair.pixels[sky], pair.missing.sum() - pair.missing[sky]
            return bool(
                pair.pixels[sky] > 1000 and pair.missing[sky] > 0.99 * pair.pixels[sky] and missing < 0.3 * others
            )
    return False
