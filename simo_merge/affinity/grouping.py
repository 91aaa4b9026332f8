"""Which tasks should share an encoder, where there is room for K of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_merge.affinity.matrix import AffinityMatrix
from simo_merge.affinity.partition import EXACT, EXACT_ITEMS, HEURISTIC, best_partitions
from simo_merge.errors import SimoError, nearest

SubsetValues = Mapping[frozenset[str], Mapping[str, float]]
"""For each set of tasks that shared an encoder what each of them gained by it, as delta against its expert."""

_PARTS = 2.0**40  # values are compared in parts of the largest: ties do not hang on rounding
_GainsOf = Callable[[tuple[int, ...]], Sequence[float]]


@dataclass(frozen=True)
class Grouping:
    """A partition of the tasks, and what is expected of it.

    groups: tasks of each encoder, in the order in which tasks were given. encoders: how many there was room for.
    value: sum over tasks of weight * gain. per_task: the gain of each task; 0 is what an encoder of its own gives, and
    the unit is the measure's. runner_up, margin: the partition after it, and by how much its value is less; None and
    NaN where there is one partition alone. measure: what the gains are from. weights: of the tasks. method: of the
    search.
    """

    groups: tuple[tuple[str, ...], ...]
    encoders: int
    value: float
    per_task: Mapping[str, float]
    runner_up: tuple[tuple[str, ...], ...] | None
    margin: float
    measure: str
    weights: Mapping[str, float]
    method: str

    @property
    def mean(self) -> float:
        """The weighted mean of the tasks' gains."""
        return self.value / sum(self.weights.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a margin that is not there is null."""
        return {
            "groups": [list(group) for group in self.groups],
            "encoders": self.encoders,
            "value": self.value,
            "mean": self.mean,
            "per_task": dict(self.per_task),
            "runner_up": None if self.runner_up is None else [list(group) for group in self.runner_up],
            "margin": None if math.isnan(self.margin) else self.margin,
            "measure": self.measure,
            "weights": dict(self.weights),
            "method": self.method,
        }


def group_tasks(
    matrix: AffinityMatrix, encoders: int, weights: Mapping[str, float] | None = None, method: str | None = None
) -> Grouping:
    """The grouping into at most K encoders that a measure expects most of.

    maximise sum_G sum_{t in G} w_t g_t(G), g_t(G) = 2 / n * sum over s in G, s != t, of Z[s, t] - a_t; n tasks in G.

    A partner has 1/n of a mean of n encoders and 1/2 of a pair's, so of its effect in the pair 2/n are expected: where
    task vectors are orthogonal and of one length, and losses quadratic, that is exact (an expert is (n - 1) / n of its
    squared length from their mean). Where all pairs are alike, all partitions into K groups are worth the same: their
    shape decides nothing. (TAG's mean over partners says that a group of many costs a task no more than a pair, so that
    K - 1 tasks are left alone.) Where every pair loses, all K encoders are used.

    a_t is what an encoder of its own is worth: the task's own entry Z[t, t], unless the matrix says another value
    (`alone`); so 0 is no loss. Where own entries are missing (NaN) the largest other entry is taken: no pair is then
    expected to be better than apart.

    Args:
        matrix: directional or not; [s, t] is what s is to t.
        encoders: K, 1 to T.
        weights: of some tasks, positive; the others have 1.
        method: `partition.EXACT` or `partition.HEURISTIC`; None is exact up to 12 tasks.

    Raises:
        SimoError: K out of range, a pair without a value, or a weight of no task or that is not positive.

    Source: Fifty et al., TAG (arXiv 2109.04617), section 3 (network selection); what n tasks cost and the search are
    ours.
    """
    gains = relative_gains(matrix)

    def gains_of(group: tuple[int, ...]) -> list[float]:
        part = gains[list(group)][:, list(group)]
        return [2 * float(value) / len(group) for value in part.sum(dim=0)]  # [t, t] is 0

    return _grouped(matrix.tasks, encoders, weights, gains_of, matrix.name, method)


def group_by_measured(
    measured: SubsetValues,
    encoders: int,
    weights: Mapping[str, float] | None = None,
    name: str = "measured",
    method: str | None = None,
) -> Grouping:
    """The grouping that is best by what was measured of every set of tasks.

    Args:
        measured: gains of the tasks of every set of two and more; a set of one gains 0 unless it is given.
        encoders, weights, method: as in `group_tasks`; but the heuristic, too, asks for any set.
        name: what the values are called.

    Raises:
        SimoError: as `group_tasks`, a set that was not measured, or one whose gains are not of its tasks.
    """
    tasks = tuple(dict.fromkeys(task for values in measured.values() for task in values))

    def gains_of(group: tuple[int, ...]) -> list[float]:
        return list(measured_gains(measured, [tasks[i] for i in group]).values())

    return _grouped(tasks, encoders, weights, gains_of, name, method)


def measured_gains(measured: SubsetValues, group: Sequence[str]) -> dict[str, float]:
    """What each task of a group gained, as it was measured; a task alone gains 0 unless it is given.

    Raises:
        SimoError: a set that was not measured, or whose gains are not finite or not of its tasks.
    """
    found = measured.get(frozenset(group))
    if found is None and len(group) == 1:
        return {group[0]: 0.0}
    if found is None:
        raise SimoError(f"no measured values of {', '.join(group)} together; every set of tasks has to be measured")
    if set(found) != set(group) or not all(math.isfinite(value) for value in found.values()):
        raise SimoError(f"the measured values of {', '.join(group)} are {dict(found)}; expected a finite one of each")
    return {task: found[task] for task in group}


def measured_value(
    groups: Sequence[Sequence[str]], measured: SubsetValues, weights: Mapping[str, float] | None = None
) -> float:
    """What a partition is worth by what was measured: sum over tasks of weight * gain.

    The regret of a choice is the best partition's value less its own.

    Raises:
        SimoError: as `measured_gains`, or a wrong weight.
    """
    whole = task_weights([task for group in groups for task in group], weights)
    return sum(whole[task] * gain for group in groups for task, gain in measured_gains(measured, group).items())


def relative_gains(matrix: AffinityMatrix) -> Tensor:
    """(T, T): Z[s, t] - a_t, 0 on the diagonal; a_t as in `group_tasks`.

    Raises:
        SimoError: a pair without a value.
    """
    own = torch.eye(len(matrix.tasks), dtype=torch.bool)
    gone = (matrix.values.isnan() & ~own).nonzero().tolist()
    if gone:
        source, target = (matrix.tasks[i] for i in gone[0])
        raise SimoError(
            f"{matrix.name} has no value of {source} for {target}; a grouping needs one for every pair: take another "
            "measure, or leave the task out"
        )
    alone = matrix.values.diagonal()
    alone = alone.where(~alone.isnan(), matrix.values[~own].max())
    return (matrix.values - (alone if matrix.alone is None else matrix.alone)).masked_fill(own, 0.0)


def _grouped(
    tasks: tuple[str, ...],
    encoders: int,
    weights: Mapping[str, float] | None,
    gains_of: _GainsOf,
    measure: str,
    method: str | None,
) -> Grouping:
    check_encoders(tasks, encoders)
    if method not in (None, EXACT, HEURISTIC):
        raise SimoError(f"unknown search {method!r}; known: {EXACT} (up to {EXACT_ITEMS} tasks), {HEURISTIC}")
    if method == EXACT and len(tasks) > EXACT_ITEMS:
        raise SimoError(f"{EXACT} takes up to {EXACT_ITEMS} tasks, there are {len(tasks)}; take {HEURISTIC}")
    whole = task_weights(tasks, weights)

    def value_of(group: tuple[int, ...]) -> float:
        return sum(whole[tasks[i]] * gain for i, gain in zip(group, gains_of(group), strict=True))

    singles_and_pairs = [(i, j) if i != j else (i,) for i in range(len(tasks)) for j in range(i, len(tasks))]
    unit = max(abs(value_of(group)) for group in singles_and_pairs) / _PARTS or 1.0
    found, used = best_partitions(len(tasks), encoders, lambda group: round(value_of(group) / unit), method)
    values = [sum(value_of(group) for group in partition) for partition in found]
    named = [tuple(tuple(tasks[i] for i in group) for group in partition) for partition in found]
    gains = {tasks[i]: gain for group in found[0] for i, gain in zip(group, gains_of(group), strict=True)}
    return Grouping(
        groups=named[0],
        encoders=encoders,
        value=values[0],
        per_task={task: gains[task] for task in tasks},
        runner_up=named[1] if len(named) > 1 else None,
        margin=max(values[0] - values[1], 0.0) if len(named) > 1 else math.nan,
        measure=measure,
        weights=whole,
        method=used,
    )


def check_encoders(tasks: Sequence[str], encoders: int) -> None:
    """Refuse a number of encoders that these tasks cannot have.

    Raises:
        SimoError: fewer than one, or more than there are tasks.
    """
    if not 1 <= encoders <= len(tasks):
        raise SimoError(f"{len(tasks)} tasks go into 1 to {len(tasks)} encoders, got {encoders!r}")


def task_weights(tasks: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of every task, 1 unless it is given.

    Raises:
        SimoError: a weight of no task, or one that is not positive.
    """
    unknown = sorted(set(given or {}) - set(tasks))
    if unknown:
        raise SimoError(
            f"a weight for {', '.join(unknown)}, which is no task here{nearest(unknown, tasks)}; the tasks are "
            f"{', '.join(tasks)}"
        )
    for task, weight in (given or {}).items():
        if not (math.isfinite(weight) and weight > 0):
            raise SimoError(f"the weight of {task} is {weight}, expected a positive number")
    return {task: float((given or {}).get(task, 1.0)) for task in tasks}
