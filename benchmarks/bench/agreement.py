"""How well affinities say what was measured: correlations with merges and joint training, and regret of groupings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np

from bench.rank_tests import Array, Field, family_p, null, of_null, ordered_pairs, partners, subsets
from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.grouping import (
    SubsetValues,
    group_by_measured,
    group_tasks,
    measured_value,
    relative_gains,
)
from simo_merge.errors import SimoError
from simo_merge.metrics import protocol_of_label
from simo_merge.metrics.delta import gain_ratio
from simo_merge.results import ResultRow
from simo_merge.tasks import Task

KINDS = ("spearman", "kendall")


@dataclass(frozen=True)
class Question:
    """What is ranked, and the items: pairs of tasks, ordered or not, or sets of tasks."""

    name: str
    field: Field
    items: tuple[tuple[int, ...], ...]
    ordered: bool


def questions(tasks: int, sizes: Sequence[int]) -> list[Question]:
    """What can be asked where all sets of these sizes were measured.

    pairs: which pairs lose least, in the mean of both tasks? directed: which task loses least beside which? partners:
    for each task, which partner is best? subsets: which sets lose least among those of their size?
    """
    pairs = tuple(combinations(range(tasks), 2))
    directed = tuple(permutations(range(tasks), 2))
    found = [
        Question("pairs", subsets(pairs, tasks), pairs, False),
        Question("directed", ordered_pairs(tasks), directed, True),
        Question("partners", partners(tasks), directed, True),
    ]
    compared = [size for size in sizes if size < tasks]  # there is but one set of all
    if max(compared, default=2) > 2:
        sets = tuple(group for size in compared for group in combinations(range(tasks), size))
        found.append(Question("subsets", subsets(sets, tasks), sets, False))
    return found


def measured_gains_of(
    rows: Sequence[ResultRow], method: str, seed: int, tasks: Mapping[str, Task]
) -> dict[frozenset[str], dict[str, float]]:
    """delta of every task, in percent of its expert, in each set of tasks that a method has a row of.

    Raises:
        SimoError: no row of the experts.
    """
    mine = [row for row in rows if row.seed == seed]
    experts = {task: row.per_task[task] for row in mine if row.method == "experts" for task in row.tasks}
    found = {}
    for row in mine:
        if row.method != method:
            continue
        gains = {}
        for name in row.tasks:
            if name not in experts:
                raise SimoError(f"there is no row of the {name} expert of seed {seed} to compare with")
            metric = tasks[name].primary_under(protocol_of_label(row.protocol).name)
            better = tasks[name].higher_is_better
            gains[name] = gain_ratio(row.per_task[name][metric], experts[name][metric], better)
        found[frozenset(row.tasks)] = gains
    return found


def expected(matrix: AffinityMatrix, question: Question) -> Array:
    """What a measure says of each item: of an ordered pair its entry, of a set the mean over tasks of their gains."""
    gains = relative_gains(matrix).numpy()
    if question.ordered:
        return np.array([matrix.values[s, t].item() for s, t in question.items])
    return np.array([gains[np.ix_(group, group)].sum() / (len(group) * (len(group) - 1)) for group in question.items])


def observed(measured: SubsetValues, tasks: Sequence[str], question: Question) -> Array:
    """What was measured of each item: of an ordered pair delta of the second beside the first, of a set mean delta."""
    values = []
    for item in question.items:
        names = [tasks[i] for i in item]
        gains = measured[frozenset(names)]
        values.append(gains[names[1]] if question.ordered else statistics.fmean(gains.values()))
    return np.array(values)


def agreements(
    measures: Mapping[int, Mapping[str, AffinityMatrix]],
    measured: Mapping[int, SubsetValues],
    asked: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """A record for each question, coefficient and measure: value, p, p for all measures of the same needs together.

    Args:
        measures: for each seed, by name.
        measured: for each seed what each set of tasks gained.
        asked: names of questions; default: all.
    """
    seeds = sorted(measured)
    first = measures[seeds[0]]
    tasks = next(iter(first.values())).tasks
    sizes = sorted({len(group) for group in measured[seeds[0]]})
    records = []
    for question in questions(len(tasks), sizes):
        if asked is not None and question.name not in asked:
            continue
        truth = [observed(measured[seed], tasks, question) for seed in seeds]
        said = {name: [expected(measures[seed][name], question) for seed in seeds] for name in first}
        for kind in KINDS:
            nulls = {name: null(question.field, said[name], truth, kind) for name in first}
            together = _family(first, nulls)
            for name, matrix in first.items():
                found = of_null(nulls[name])
                records.append(
                    {
                        "question": question.name,
                        "coefficient": kind,
                        "measure": name,
                        "needs": matrix.needs,
                        "items": len(question.items),
                        "value": found.value,
                        "p": found.p,
                        "p_family": together[name],
                        "by_seed": list(found.by_seed),
                    }
                )
    return records


def without(
    task: str, measures: Mapping[int, Mapping[str, AffinityMatrix]], measured: Mapping[int, SubsetValues]
) -> tuple[dict[int, dict[str, AffinityMatrix]], dict[int, SubsetValues]]:
    """Measures and gains as they would be had the task not been there: a pair's entry is of that pair alone."""
    matrices: dict[int, dict[str, AffinityMatrix]] = {}
    for seed, found in measures.items():
        matrices[seed] = {}
        for name, matrix in found.items():
            kept = [place for place, other in enumerate(matrix.tasks) if other != task]
            tasks, values = tuple(matrix.tasks[place] for place in kept), matrix.values[kept][:, kept]
            matrices[seed][name] = replace(matrix, tasks=tasks, values=values, profile={})
    gains = {seed: {group: g for group, g in found.items() if task not in group} for seed, found in measured.items()}
    return matrices, gains


def complete(
    measures: Mapping[int, Mapping[str, AffinityMatrix]],
) -> tuple[dict[int, dict[str, AffinityMatrix]], list[str]]:
    """The measures that have a value of every pair in every seed, and the names of the others."""
    names = list(dict.fromkeys(name for found in measures.values() for name in found))
    gone = [name for name in names if not all(_whole(found.get(name)) for found in measures.values())]
    return {seed: {n: m for n, m in found.items() if n not in gone} for seed, found in measures.items()}, gone


def _whole(matrix: AffinityMatrix | None) -> bool:
    return matrix is not None and not bool(matrix.values.isnan().fill_diagonal_(False).any())


def _family(matrices: Mapping[str, AffinityMatrix], nulls: Mapping[str, Array]) -> dict[str, float]:
    """p-values for all label-free measures together, and for all that read labels."""
    found = {}
    for labels in (False, True):
        names = [name for name, matrix in matrices.items() if (matrix.needs == "labels") is labels]
        found |= dict(zip(names, family_p([nulls[name] for name in names]), strict=True)) if names else {}
    return found


def regrets(
    measures: Mapping[int, Mapping[str, AffinityMatrix]], measured: Mapping[int, SubsetValues], encoders: Sequence[int]
) -> list[dict[str, Any]]:
    """For each number of encoders and measure what its grouping costs against the best one, in points of mean delta.

    Beside the measures stand `any grouping`, the mean over all partitions into exactly K, and `one encoder`, what using
    K encoders is worth at all.
    """
    seeds = sorted(measured)
    records = []
    for room in encoders:
        best = {seed: group_by_measured(measured[seed], room) for seed in seeds}
        size = len(best[seeds[0]].per_task)
        tops = [measured_value(best[seed].groups, measured[seed]) / size for seed in seeds]
        for name in measures[seeds[0]]:
            chosen = [group_tasks(measures[seed][name], room) for seed in seeds]
            values = [measured_value(c.groups, measured[s]) / size for c, s in zip(chosen, seeds, strict=True)]
            groups = [[list(group) for group in c.groups] for c in chosen]
            records.append(_regret(room, name, seeds, tops, values, groups, measures[seeds[0]][name].needs))
        tasks = list(best[seeds[0]].per_task)
        for name, wanted in (("any grouping", min(room, size)), ("one encoder", 1)):
            drawn = [p for p in partitions(tasks) if len(p) == wanted]
            means = [statistics.fmean(measured_value(p, measured[seed]) / size for p in drawn) for seed in seeds]
            records.append(_regret(room, name, seeds, tops, means, [], ""))
        groups = [[list(group) for group in best[seed].groups] for seed in seeds]
        records.append(_regret(room, "best", seeds, tops, tops, groups, ""))
    return records


def partitions(tasks: list[str]) -> list[list[list[str]]]:
    """All partitions."""
    if not tasks:
        return [[]]
    found = []
    for rest in partitions(tasks[1:]):
        found.append([[tasks[0]], *rest])
        found += [[*rest[:i], [tasks[0], *rest[i]], *rest[i + 1 :]] for i in range(len(rest))]
    return found


def _regret(
    room: int,
    name: str,
    seeds: Sequence[int],
    best: Sequence[float],
    values: Sequence[float],
    groups: list[Any],
    needs: str,
) -> dict[str, Any]:
    lost = [top - value for top, value in zip(best, values, strict=True)]
    return {
        "encoders": room,
        "measure": name,
        "needs": needs,
        "seeds": list(seeds),
        "delta": statistics.fmean(values),
        "regret": statistics.fmean(lost),
        "by_seed": lost,
        "groups": groups,
    }
