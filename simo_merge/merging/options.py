"""Checks that the options of merge methods share, and coefficients that differ between tasks and layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from simo_merge.errors import SimoError
from simo_merge.merging.parameter import Parameter

Scale = float | tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A scaling coefficient for all task vectors, or one for each task, or for each layer one for each task."""


def finite(method: str, option: str, value: Any) -> float:
    """The number; refused when it is none, NaN or infinite."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise SimoError(f"the {option} of {method} must be a finite number, got {value}")
    return float(value)


def share(method: str, option: str, value: Any, *, zero: bool = False, one: bool = True) -> float:
    """A number between 0 and 1; whether the ends belong to it is told."""
    number = finite(method, option, value)
    above, below = (number >= 0 if zero else number > 0), (number <= 1 if one else number < 1)
    if not (above and below):
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise SimoError(f"the {option} of {method} is a share in {interval}, got {value}")
    return number


def above_zero(method: str, option: str, value: Any) -> float:
    """A finite number above 0."""
    number = finite(method, option, value)
    if number <= 0:
        raise SimoError(f"the {option} of {method} must be above 0, got {value}; give a small positive number")
    return number


def whole(method: str, option: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise SimoError(f"the {option} of {method} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Texts as a tuple; one alone stands for itself, not for its letters."""
    return (value,) if isinstance(value, str) else tuple(value)


def one_of(method: str, option: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a word that is not among the known ones."""
    known = tuple(known)
    if value not in known:
        raise SimoError(f"unknown {option} {value!r} of {method}; known: {', '.join(known)}")


def per_task(method: str, option: str, value: Any) -> float | tuple[float, ...]:
    """One number, or one for each task; a list (as JSON has it) becomes a tuple."""
    if not isinstance(value, (list, tuple)):
        return finite(method, option, value)
    if not value:
        raise SimoError(f"the {option} of {method} is an empty list; give one number, or one for each task")
    return tuple(finite(method, option, number) for number in value)


def scale_of(method: str, value: Any) -> Scale:
    """One scaling coefficient, one a task, or one a layer and task, as tuples.

    Raises:
        SimoError: anything but finite numbers, or layers with different numbers of tasks.
    """
    if not isinstance(value, (list, tuple)) or not any(isinstance(row, (list, tuple)) for row in value):
        return per_task(method, "scale", value)
    rows = []
    for row in value:
        if not isinstance(row, (list, tuple)) or not row or len(row) != len(value[0]):
            raise SimoError(
                f"the scale of {method} mixes rows of different lengths; give each layer a list of one number a task"
            )
        rows.append(tuple(finite(method, "scale", number) for number in row))
    return tuple(rows)


def for_tasks(method: str, option: str, value: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    """One number for each of the `count` experts.

    Raises:
        SimoError: a tuple of another length.
    """
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        raise SimoError(
            f"the {option} of {method} has {len(value)} numbers, but there are {count} experts; give one each"
        )
    return value


def coefficients(method: str, scale: Scale, parameter: Parameter) -> tuple[float, ...]:
    """The scaling coefficient of every task for this parameter, (T,).

    Raises:
        SimoError: a scale for another number of tasks or layers.
    """
    if not isinstance(scale, tuple) or not isinstance(scale[0], tuple):
        return for_tasks(method, "scale", scale, parameter.count)
    if len(scale) != parameter.layers:
        raise SimoError(
            f"the scale of {method} has {len(scale)} rows, but the encoder has {parameter.layers} layers (what comes "
            "before the blocks, each block, what comes after); give a row for each"
        )
    return for_tasks(method, "scale", scale[parameter.layer], parameter.count)
