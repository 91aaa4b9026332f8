"""Recorded values in a few words: what a merge has learned can be thousands of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LONG = 6  # values; more than that are summed up


def brief(value: Any, whole: str) -> str:
    """A plain JSON value as text; of a long list or mapping how many values it has and, of numbers, their range.

    Args:
        value: numbers, texts, lists and mappings of these.
        whole: where all of it is to be found.
    """
    leaves = list(_leaves(value))
    if len(leaves) <= LONG:
        return str(value)
    if not all(isinstance(leaf, int | float) and not isinstance(leaf, bool) for leaf in leaves):
        return f"{len(leaves)} values, all in {whole}"
    mean = sum(leaves) / len(leaves)
    return (
        f"{len(leaves)} numbers, least {min(leaves):.3g}, mean {mean:.3g}, greatest {max(leaves):.3g}, all in {whole}"
    )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for item in value:
        yield from _leaves(item)
