"""The merge methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simo_merge.errors import SimoError
from simo_merge.merging.linear import TaskArithmetic, WeightAverage
from simo_merge.merging.method import MergeMethod

MERGE_METHODS: dict[str, type[MergeMethod]] = {m.name: m for m in (WeightAverage, TaskArithmetic)}


def merge_method(name: str, parameters: Mapping[str, Any] | None = None) -> MergeMethod:
    """The method of this name with these parameters.

    Raises:
        SimoError: an unknown name (the known ones are listed) or a parameter that the method does not have.
    """
    if name not in MERGE_METHODS:
        raise SimoError(f"unknown merge method {name!r}; known: {', '.join(sorted(MERGE_METHODS))}")
    try:
        return MERGE_METHODS[name](**(parameters or {}))
    except TypeError as error:
        raise SimoError(f"merge method {name!r} does not take {dict(parameters or {})}: {error}") from error
