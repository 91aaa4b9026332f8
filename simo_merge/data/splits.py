"""Published splits: lists of keys that travel with the package, so that no random generator's version changes one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from simo_merge.data.source import Split
from simo_merge.errors import SimoError


def published(data: str, name: str) -> tuple[str, ...]:
    """The keys in `split_lists/<data>/<name>.txt`, in the file's order; lines that begin with # are remarks.

    Args:
        data: Name of the data set, as `nyuv2`.
        name: Name of the list, as `simo-2504.11268/val`.
    """
    lines = resources.files("simo_merge.data").joinpath("split_lists", data, f"{name}.txt").read_text("utf-8")
    return tuple(line.strip() for line in lines.splitlines() if line.strip() and not line.startswith("#"))


def present(data: str, name: str, listed: Sequence[str], available: Sequence[str]) -> Split:
    """The part of a published list that is on disk, in the list's order.

    Raises:
        SimoError: none of it is.
    """
    there = set(available)
    keys = tuple(key for key in listed if key in there)
    if not keys:
        raise SimoError(
            f"no image of the {len(listed)} of {data} ({name}) is there; the first would be {listed[0]!r}. "
            "Is this folder of another split, or of another layout?"
        )
    return Split(name, keys, len(listed))


def unknown_split(data: str, name: str, known: Sequence[str]) -> SimoError:
    """The error for a split that a data set does not have."""
    return SimoError(f"{data} has no split {name!r}; it has {', '.join(known)}")
