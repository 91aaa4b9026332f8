"""Are the pictures pictures?"""

from __future__ import annotations

from simo_merge.checking import facts
from simo_merge.checking.findings import Finding, named
from simo_merge.checking.rules.files import KEPT
from simo_merge.checking.statistics import Statistics

_DARK = 0.02


def sizes(statistics: Statistics) -> list[Finding]:
    """Sizes that the data set's layout does not have, and pictures of several sizes."""
    seen = statistics.images.sizes
    found = []
    if len(seen) > 1:
        listed = [f"{count} of {height}x{width}" for (height, width), count in seen.most_common()]
        message = f"the pictures have {len(seen)} sizes: {named(listed, 4)}. Batches need one: give a size."
        found.append(Finding("note", "several-sizes", message))
    layouts = facts.SIZES.get(statistics.data)
    if layouts is None or statistics.resized:
        return found
    known = layouts.get(statistics.layout) or tuple(size for sizes in layouts.values() for size in sizes)
    expected = " or ".join(f"{height}x{width}" for height, width in dict.fromkeys(known))
    for (height, width), count in seen.most_common():
        if (height, width) in known:
            continue
        alike = any(abs(height * w - width * h) <= max(h, w) for h, w in known)
        which = f"{statistics.data} ({statistics.layout})" if statistics.layout else statistics.data
        message = f"{count} pictures are {height}x{width}, and {which} is published as {expected}. " + (
            "The proportions are the same, so this is probably a resized copy; labels must have been resized by the "
            "nearest pixel, and scores are not comparable."
            if alike
            else "The proportions differ too: is this another data set, a crop, or turned by a quarter?"
        )
        found.append(Finding("warning" if alike else "failure", "size", message))
    return found


def brightness(statistics: Statistics) -> list[Finding]:
    """Pixels outside [0, 1], and pictures that were divided by 255 once too often."""
    images = statistics.images
    if images.count and (images.lowest < -1e-4 or images.highest > 1 + 1e-4):
        message = f"pixels range from {images.lowest:g} to {images.highest:g}, expected 0 to 1."
        return [Finding("failure", "pixel-range", message)]
    if images.count and images.highest < _DARK:
        message = (
            f"the brightest pixel of all pictures is {images.highest:.4f} on a scale from 0 to 1: they were probably "
            "divided by 255 twice."
        )
        return [Finding("failure", "dark", message)]
    return []


def one_colour(statistics: Statistics) -> list[Finding]:
    """Pictures that show nothing."""
    flat = statistics.images.flat
    if not flat:
        return []
    pictures = "picture is" if len(flat) == 1 else "pictures are"
    message = f"{len(flat)} {pictures} of one colour only: {named(flat)}. Was the file written whole?"
    return [Finding("warning", "one-colour", message, "", tuple(flat[:KEPT]))]
