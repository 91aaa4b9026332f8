"""Candidates of a selection, and the one that was chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from simo_merge.errors import SimoError
from simo_merge.merging import MergeMethod


@dataclass(frozen=True)
class Candidate:
    """Options that were tried.

    options: by name. score: higher is better; NaN where it could not be measured. seconds: to merge and to score.
    """

    options: Mapping[str, Any]
    score: float
    seconds: float = field(default=math.nan, compare=False)


@dataclass(frozen=True)
class MethodSelection:
    """What was chosen, and what it was chosen from.

    method: with the chosen options, ready to merge. options: those that were chosen. candidates: all, in the order in
    which they were tried. criterion: what their scores are. seconds: of the whole selection.
    """

    method: MergeMethod
    options: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    criterion: str
    seconds: float = field(default=math.nan, compare=False)


def with_options(method: MergeMethod, options: Mapping[str, Any]) -> MergeMethod:
    """The method with some of its options changed.

    Raises:
        SimoError: an option that it does not have (its options are listed), or a value that it refuses.
    """
    check_options(method, options)
    return replace(method, **options)  # type: ignore[type-var]


def check_options(method: MergeMethod, names: Iterable[str]) -> None:
    """Refuse names of options that the method does not have.

    Raises:
        SimoError: its options are listed.
    """
    known = [option.name for option in fields(method)]  # type: ignore[arg-type]  # every method is a dataclass
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SimoError(f"{method.name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")


def check_values(space: Mapping[str, Any]) -> None:
    """Refuse options that are not given as a list of values.

    Raises:
        SimoError: no option, or one with a single value, a `Range`, or an empty list.
    """
    for name, values in space.items():
        if isinstance(values, str) or not isinstance(values, Collection):
            raise SimoError(
                f"option {name!r} needs a list of values to try, got {values!r}; write [{values!r}] for one value, and "
                "give a Range to a Search"
            )
    empty = [name for name, values in space.items() if len(values) == 0]
    if not space or empty:
        what = f"option {empty[0]!r} has no values" if empty else "no option was named"
        raise SimoError(f"no candidates to choose from: {what}; give at least one")


def grid(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, the last option varying fastest.

    Raises:
        SimoError: as `check_values`.
    """
    check_values(space)
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def best(candidates: Sequence[Candidate], criterion: str) -> Candidate:
    """The candidate of the highest score; of equals the first.

    Raises:
        SimoError: no score is finite.
    """
    usable = [candidate for candidate in candidates if math.isfinite(candidate.score)]
    if not usable:
        tried = "; ".join(describe(candidate.options) for candidate in candidates)
        raise SimoError(f"no candidate gives a finite {criterion}; tried {tried}")
    return max(usable, key=lambda candidate: candidate.score)


def describe(options: Mapping[str, Any]) -> str:
    """The options as a person writes them: `scale=0.3, density=0.2`."""
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in options.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
