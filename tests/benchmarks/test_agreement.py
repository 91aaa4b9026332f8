"""What affinities are compared with, and what a wrong grouping costs."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import numpy as np
import pytest
import torch

from bench.agreement import (
    agreements,
    complete,
    expected,
    measured_gains_of,
    observed,
    partitions,
    questions,
    regrets,
    without,
)
from simo_merge.affinity import AffinityMatrix
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Segmentation
from tests.benchmarks.worlds import made_up

TASKS = ("a", "b", "c", "d")
SETS = [group for size in (2, 3, 4) for group in combinations(TASKS, size)]


def measured(seed: int = 0) -> dict[frozenset[str], dict[str, float]]:
    generator = np.random.default_rng(seed)
    return {frozenset(g): dict(zip(g, generator.normal(size=len(g)).tolist(), strict=True)) for g in SETS}


def matrix_of(gains: dict[frozenset[str], dict[str, float]], name: str = "oracle") -> AffinityMatrix:
    """What was measured of the pairs, as a measure."""
    values = torch.zeros(4, 4).double()
    for i, s in enumerate(TASKS):
        for j, t in enumerate(TASKS):
            if i != j:
                values[i, j] = gains[frozenset((s, t))][t]
    return AffinityMatrix(name, TASKS, values, False, "images")


def test_gains_are_those_of_each_task_against_its_expert() -> None:
    tasks = {"segmentation": Segmentation(classes=("x", "y")), "depth": Depth()}
    rows = [
        made_up("experts", 0.0),
        made_up("merged", 0.0, per_task={"segmentation": {"miou": 0.4}, "depth": {"abs": 0.5}}),
        made_up("merged", 0.0, seed=1),
        made_up("other", 0.0),
    ]
    found = measured_gains_of(rows, "merged", 0, tasks)
    assert found == {frozenset(tasks): {"segmentation": pytest.approx(-20.0), "depth": pytest.approx(-50.0)}}
    with pytest.raises(SimoError, match="no row of the segmentation expert of seed 1"):
        measured_gains_of(rows, "merged", 1, tasks)


def test_each_question_asks_for_its_items() -> None:
    gains, matrix = measured(), matrix_of(measured())
    asked = {question.name: question for question in questions(4, (2, 3, 4))}
    assert {name: len(question.items) for name, question in asked.items()} == {
        "pairs": 6,
        "directed": 12,
        "partners": 12,
        "subsets": 10,
    }
    for question in asked.values():
        truth, said = observed(gains, TASKS, question), expected(matrix, question)
        for item, seen, told in zip(question.items, truth, said, strict=True):
            names = [TASKS[i] for i in item]
            inside = gains[frozenset(names)]
            assert seen == (inside[names[1]] if question.ordered else statistics.fmean(inside.values()))
            if len(item) == 2:
                assert told == pytest.approx(seen)
    triple = asked["subsets"].items.index((0, 1, 3))
    pairs = [gains[frozenset(p)][t] for p in combinations("abd", 2) for t in p]
    assert expected(matrix, asked["subsets"])[triple] == pytest.approx(statistics.fmean(pairs))
    assert [question.name for question in questions(4, (2,))] == ["pairs", "directed", "partners"]


def test_what_was_measured_itself_agrees_and_its_opposite_does_not() -> None:
    truth = {seed: measured(seed) for seed in (0, 1)}
    oracle = {seed: matrix_of(found) for seed, found in truth.items()}
    against = {s: AffinityMatrix("against", TASKS, -m.values, False, "weights") for s, m in oracle.items()}
    records = agreements({s: {"oracle": oracle[s], "against": against[s]} for s in truth}, truth)
    assert len(records) == 2 * 2 * 4
    for record in records:
        if record["question"] == "subsets":
            continue
        assert record["value"] == pytest.approx(1 if record["measure"] == "oracle" else -1)
        assert record["p"] == pytest.approx(1 / 24 if record["measure"] == "oracle" else 1)
        assert record["p_family"] >= record["p"]
        assert len(record["by_seed"]) == 2


def test_regret_is_what_the_chosen_grouping_loses_in_mean_delta() -> None:
    gains = measured(3)
    values = torch.full((4, 4), -1.0).double()
    values[0, 1] = values[1, 0] = values[2, 3] = values[3, 2] = -0.1
    fixed = AffinityMatrix("fixed", TASKS, values.fill_diagonal_(0), True, "weights")  # a, b and c, d
    records = {record["measure"]: record for record in regrets({0: {"fixed": fixed}}, {0: gains}, [2])}

    def mean_delta(groups: list[list[str]]) -> float:
        return sum(sum(gains[frozenset(g)].values()) for g in groups if len(g) > 1) / 4

    every = [p for p in partitions(list(TASKS)) if len(p) <= 2]
    best = max(mean_delta(p) for p in every)
    assert records["fixed"]["delta"] == pytest.approx(mean_delta([["a", "b"], ["c", "d"]]))
    assert records["fixed"]["regret"] == pytest.approx(best - records["fixed"]["delta"])
    assert records["best"]["delta"] == pytest.approx(best)
    assert records["best"]["regret"] == 0
    assert records["one encoder"]["delta"] == pytest.approx(mean_delta([list(TASKS)]))
    halves = [mean_delta(p) for p in every if len(p) == 2]
    assert len(halves) == 7
    assert records["any grouping"]["delta"] == pytest.approx(statistics.fmean(halves))


def test_a_measure_that_lacks_a_pair_in_some_seed_is_left_out_and_named() -> None:
    whole = matrix_of(measured())
    values = whole.values.clone()
    values[0, 1] = math.nan
    partial = AffinityMatrix("oracle", TASKS, values, False, "images")
    found, gone = complete({0: {"oracle": whole, "same": whole}, 1: {"oracle": partial, "same": whole}})
    assert gone == ["oracle"]
    assert [list(measures) for measures in found.values()] == [["same"], ["same"]]


def test_without_a_task_the_others_are_asked_as_if_it_had_not_been_there() -> None:
    """A measure that is right of all pairs but those of `d`, about which it says the opposite."""
    gains = {seed: measured(seed) for seed in (0, 1)}
    wrong = {}
    for seed, found in gains.items():
        matrix = matrix_of(found)
        matrix.values[3] *= -1
        matrix.values[:, 3] *= -1
        wrong[seed] = {"oracle": matrix}
    matrices, left = without("d", wrong, gains)
    assert matrices[0]["oracle"].tasks == ("a", "b", "c")
    assert set(left[1]) == {frozenset(g) for g in SETS if "d" not in g}
    records = agreements(matrices, left, asked=("pairs",))
    assert {record["question"] for record in records} == {"pairs"}
    assert {record["items"] for record in records} == {3}
    assert all(record["value"] == pytest.approx(1) for record in records)
    whole = [record for record in agreements(wrong, gains) if record["question"] == "pairs"]
    assert all(record["value"] < 0.9 for record in whole)
