"""Do two rankings of pairs or sets of tasks agree? Rank correlations, and p-values from permuted task labels.

The entries of a matrix over tasks are not independent: every task stands in several pairs. So not entries but the
tasks' labels are permuted, rows and columns together, as in Mantel's test (Cancer Research 27, 1967). Under the null
hypothesis the labels of the measure have nothing to do with those of what was measured. With T tasks there are T! such
permutations: all are tried up to seven tasks, so that the p-value is exact; beyond, so many are drawn.

Several seeds share their tasks, and so their permutation: they make the mean correlation more precise, and add no pair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from simo_merge.metrics.ranks import ranks

Array = npt.NDArray[np.float64]
Item = tuple[Any, ...]

EXACT_TASKS = 7
DRAWN = 9999
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Field:
    """Items to rank, within strata, and where each permutation of tasks sends them.

    strata: (N,) number of each item's stratum. moved: (P, N), [p, i] the item that item i becomes under permutation p;
    the first permutation changes nothing. A stratum goes to one stratum as a whole.
    """

    strata: npt.NDArray[np.int64]
    moved: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """A mean rank correlation over seeds and strata. p: of one as large among permuted labels, one-sided. by_seed: the
    correlation of each seed."""

    value: float
    p: float
    by_seed: tuple[float, ...]


def ordered_pairs(tasks: int) -> Field:
    """All [s, t], s != t, in one ranking; items in the order of `permutations(range(tasks), 2)`."""
    return _field(list(permutations(range(tasks), 2)), lambda item: 0, tasks, ordered=True)


def partners(tasks: int) -> Field:
    """The same items, ranked for each target t apart: which partner is best for it?"""
    return _field(list(permutations(range(tasks), 2)), lambda item: item[1], tasks, ordered=True)


def subsets(items: Sequence[Item], tasks: int) -> Field:
    """Sets of tasks, as rising tuples, ranked among sets of their size. All sets of a size, or none."""
    return _field(list(items), len, tasks, ordered=False)


def compare(field: Field, measure: Sequence[Array], measured: Sequence[Array], kind: str) -> Agreement:
    """Mean over seeds of the rank correlation, and its p-value.

    Args:
        field: what the values are of.
        measure, measured: for each seed (N,), larger is better.
        kind: `spearman` or `kendall` (tau-b).

    A stratum in which one side has equal values alone counts as 0: it tells nothing.
    """
    return of_null(null(field, measure, measured, kind))


def of_null(found: Array) -> Agreement:
    """The mean over seeds and its p-value, from what `null` gave, (seeds, P)."""
    exceed = (found.mean(axis=0) >= found[:, 0].mean() - _ROUNDING).mean()
    return Agreement(float(found[:, 0].mean()), float(exceed), tuple(found[:, 0].tolist()))


def null(field: Field, measure: Sequence[Array], measured: Sequence[Array], kind: str) -> Array:
    """(seeds, P): the correlation under every permutation of the measure's labels, the true one first."""
    one = spearman_null if kind == "spearman" else kendall_null
    return np.stack([one(field, x, y) for x, y in zip(measure, measured, strict=True)])


def family_p(nulls: Sequence[Array]) -> list[float]:
    """p-values that hold for all measures together: how often the best of all does as well as this one by chance.

    Args:
        nulls: of each measure, (seeds, P), under the same permutations.

    Source: the single-step max-statistic procedure, Westfall and Young 1993.
    """
    means = np.stack([found.mean(axis=0) for found in nulls])
    best = means.max(axis=0)
    return [float((best >= own[0] - _ROUNDING).mean()) for own in means]


def spearman_null(field: Field, x: Array, y: Array) -> Array:
    """(P,): mean over strata of Pearson's correlation of the ranks, with mean ranks for ties."""
    a, b = _scores(x, field.strata), _scores(y, field.strata)
    return a[field.moved] @ b / len(np.unique(field.strata))


def kendall_null(field: Field, x: Array, y: Array) -> Array:
    """(P,): mean over strata of tau-b = (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)."""
    a, b = _signs(x, field.strata), _signs(y, field.strata)
    values = [float((a[np.ix_(to, to)] * b).sum()) for to in field.moved]
    return np.array(values) / len(np.unique(field.strata))


def _scores(values: Array, strata: npt.NDArray[np.int64]) -> Array:
    """Ranks within strata, centred and of length one; 0 where all are equal."""
    scores = np.zeros(len(values))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        found = ranks(values[inside])
        centred = found - found.mean()
        length = math.sqrt(float(centred @ centred))
        scores[inside] = centred / length if length else 0.0
    return scores


def _signs(values: Array, strata: npt.NDArray[np.int64]) -> Array:
    """(N, N) signs of the differences within strata, each stratum of length one."""
    signs = np.sign(values[:, None] - values[None, :]) * (strata[:, None] == strata[None, :])
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        length = math.sqrt(float((signs[inside] ** 2).sum()))
        signs[inside] /= length or 1.0
    return signs


def _field(items: list[Item], stratum: Any, tasks: int, ordered: bool) -> Field:
    place = {item: index for index, item in enumerate(items)}
    moved = []
    for to in _task_permutations(tasks):
        images = [tuple(to[task] for task in item) for item in items]
        moved.append([place[image if ordered else tuple(sorted(image))] for image in images])
    keys: list[Hashable] = [stratum(item) for item in items]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Field(np.array([numbers[key] for key in keys]), np.array(moved))


def _task_permutations(tasks: int) -> list[tuple[int, ...]]:
    if tasks <= EXACT_TASKS:
        return list(permutations(range(tasks)))
    generator = np.random.default_rng(0)
    drawn = [tuple(generator.permutation(tasks).tolist()) for _ in range(DRAWN)]
    return [tuple(range(tasks)), *drawn]
