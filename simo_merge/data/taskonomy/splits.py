"""Taskonomy's splits are lists of buildings; every view of a listed building belongs to the split, up to a limit."""

from __future__ import annotations

from simo_merge.data.splits import published, unknown_split

SUBSETS = ("tiny", "medium", "full", "fullplus", "simo-2504.11268")
"""The published subsets, each inside the next, and the buildings of arXiv 2504.11268."""
SPLITS: tuple[str, ...] = tuple(f"{subset}/{part}" for subset in SUBSETS for part in ("train", "val", "test"))
LIMITS: dict[str, int] = {
    "simo-2504.11268/train": 2000,
    "simo-2504.11268/val": 1000,
    "simo-2504.11268/test": 1000,
}
"""Split -> how many views it takes of each building: the first ones, with file names sorted as text."""


def buildings_of(name: str) -> tuple[str, ...]:
    """The buildings of a split, in the order of its list.

    Raises:
        SimoError: an unknown split (the known ones are listed); `train` alone is one, since every subset has its own.
    """
    if name not in SPLITS:
        raise unknown_split("taskonomy", name, SPLITS)
    return published("taskonomy", name)
