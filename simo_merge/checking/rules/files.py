"""Are all files there, whole, and each once?"""

from __future__ import annotations

from simo_merge.checking.findings import Finding, named
from simo_merge.checking.statistics import Statistics

KEPT = 200
"""So many keys or lines are kept of one finding."""


def missing(statistics: Statistics) -> list[Finding]:
    """Label files that are not there."""
    return [
        Finding(
            "failure",
            "missing-files",
            f"{len(files)} label file{' is' if len(files) == 1 else 's are'} not there, the first is {files[0]}. The "
            "task was not checked. Add what is missing, or take the keys out of the split.",
            task,
            details=files[:KEPT],
        )
        for task, files in statistics.missing.items()
    ]


def unreadable(statistics: Statistics) -> list[Finding]:
    """Images that cannot be read, every file of them named."""
    if not statistics.unreadable:
        return []
    lines = tuple(reason for reasons in statistics.unreadable.values() for reason in reasons)
    read = statistics.images.count + len(statistics.unreadable)
    what = "image cannot" if len(statistics.unreadable) == 1 else "images cannot"
    message = f"{len(statistics.unreadable)} of {read} {what} be read or have labels that cannot be right: {lines[0]}"
    return [Finding("failure", "unreadable", message, "", tuple(statistics.unreadable)[:KEPT], lines[:KEPT])]


def partial(statistics: Statistics) -> list[Finding]:
    """Splits with fewer images than were published."""
    counted = [(statistics.split, statistics.total, statistics.published)]
    counted += [(split.name, len(split.keys), split.published) for split in statistics.splits.found]
    lines = tuple(
        f"{here:,} of the {published:,} images of split {name} are here"
        for name, here, published in counted
        if published is not None and here < published
    )
    if not lines:
        return []
    message = f"{named(lines, 6)}; scores on a part are not comparable with published ones."
    return [Finding("warning", "partial", message)]


def splits(statistics: Statistics) -> list[Finding]:
    """Splits that cannot be read, and training images that are also tested on."""
    own = statistics.layout == "folder"
    found = [
        Finding("failure" if own else "note", "split", f"split {name}: {reason}")
        for name, reason in statistics.splits.problems
    ]
    keys = {split.name: set(split.keys) for split in statistics.splits.found}
    for other in ("val", "test"):
        both = sorted(keys.get("train", set()) & keys.get(other, set()))
        if both:
            message = (
                f"{len(both)} images are in the splits train and {other}: {named(both)}. A score on {other} would be "
                "too good; take them out of one of the two."
            )
            found.append(Finding("failure", "leak", message, "", tuple(both[:KEPT])))
    return found


def duplicates(statistics: Statistics) -> list[Finding]:
    """Pictures with exactly the same pixels under several keys."""
    twins = statistics.images.twins
    if not twins:
        return []
    places = statistics.splits
    lines = []
    for first, others in twins.items():
        marks = [f"{key} ({places.of(key)})" if places.of(key) else key for key in (first, *others)]
        lines.append(" = ".join(marks))
    count = sum(len(others) for others in twins.values())
    pictures = "picture occurs" if count == 1 else "pictures occur"
    message = f"{count} {pictures} a second time under another key: {named(lines, 2)}. Keep one of each."
    keys = tuple(key for first, others in twins.items() for key in (first, *others))
    return [Finding("warning", "duplicate", message, "", keys[:KEPT], tuple(lines[:KEPT]))]
