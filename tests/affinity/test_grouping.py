"""Groupings against trying every partition, ties, weights, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.grouping import group_by_measured, group_tasks, measured_value
from simo_merge.affinity.partition import EXACT, HEURISTIC, best_partitions
from simo_merge.errors import SimoError

NAMES = tuple("abcdefghijklmnop")


def affinities(values: Sequence[Sequence[float]] | Tensor, symmetric: bool = False) -> AffinityMatrix:
    values = torch.as_tensor(values, dtype=torch.float64)
    return AffinityMatrix("made-up", NAMES[: len(values)], values, symmetric, "weights")


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All of them, by putting the first item into every group of every partition of the rest."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


def plain_value(groups: list[list[int]], values: Tensor, weights: Sequence[float]) -> float:
    total = 0.0
    for group in groups:
        for t in group:
            for s in group:
                if s != t:
                    total += weights[t] * 2 / len(group) * float(values[s, t] - values[t, t])
    return total


matrices = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(st.floats(-3, 3), min_size=size, max_size=size), min_size=size, max_size=size)
)


@settings(max_examples=80, deadline=None)
@given(matrices, st.integers(1, 6), st.lists(st.floats(0.1, 5), min_size=6, max_size=6))
def test_the_grouping_and_its_runner_up_are_the_best_two_of_all_partitions(
    rows: list[list[float]], encoders: int, weights: list[float]
) -> None:
    size, values = len(rows), torch.tensor(rows, dtype=torch.float64)
    encoders = min(encoders, size)
    found = group_tasks(affinities(values), encoders, dict(zip(NAMES[:size], weights, strict=False)))
    allowed = [p for p in partitions(list(range(size))) if len(p) <= encoders]
    best = sorted((plain_value(p, values, weights) for p in allowed), reverse=True)
    assert found.value == pytest.approx(best[0], abs=1e-9)
    assert sum(weights[NAMES.index(t)] * gain for t, gain in found.per_task.items()) == pytest.approx(found.value)
    indices = [[NAMES.index(task) for task in group] for group in found.groups]
    assert plain_value(indices, values, weights) == pytest.approx(best[0], abs=1e-9)
    assert len(found.groups) <= encoders
    assert sorted(task for group in found.groups for task in group) == sorted(NAMES[:size])
    if len(best) == 1:
        assert found.runner_up is None
        assert math.isnan(found.margin)
    else:
        assert found.margin == pytest.approx(best[0] - best[1], abs=1e-9)
        assert found.runner_up != found.groups


@settings(max_examples=25, deadline=None)
@given(matrices, st.integers(1, 6))
def test_the_heuristic_is_never_better_than_the_exact_search_and_cannot_be_mended_by_one_move(
    rows: list[list[float]], encoders: int
) -> None:
    encoders = min(encoders, len(rows))
    matrix = affinities(rows)
    exact, found = (group_tasks(matrix, encoders, method=method) for method in (EXACT, HEURISTIC))
    assert found.method == HEURISTIC
    assert found.value <= exact.value + 1e-9
    groups = [set(group) for group in found.groups]
    for task in matrix.tasks:
        for i in range(encoders):
            moved = [group - {task} for group in groups] + [set() for _ in range(encoders - len(groups))]
            moved[i] = moved[i] | {task}
            indices = [[NAMES.index(t) for t in group] for group in moved if group]
            assert plain_value(indices, matrix.values, [1.0] * 6) <= found.value + 1e-9


def test_fourteen_tasks_of_two_families_are_parted_by_the_heuristic() -> None:
    family = torch.arange(14) % 2
    values = torch.where(family[:, None] == family, 0.9, 0.1).double() + torch.eye(14).double() * 0.1
    found = group_tasks(affinities(values), 2)
    assert found.method == HEURISTIC
    assert found.groups == (NAMES[0:14:2], NAMES[1:14:2])
    assert found.margin > 0


def test_twelve_tasks_are_parted_exactly() -> None:
    torch.manual_seed(0)
    matrix = affinities(torch.randn(12, 12).double())
    exact, near = group_tasks(matrix, 3), group_tasks(matrix, 3, method=HEURISTIC)
    assert exact.method == EXACT
    assert exact.value >= near.value


def test_affinity_has_a_direction() -> None:
    # c helps a and is not hurt by it; a and b harm each other.
    values = [[0.0, -1.0, 0.0], [-1.0, 0.0, -0.2], [1.0, -0.2, 0.0]]
    found = group_tasks(affinities(values), 2)
    assert found.groups == (("a", "c"), ("b",))
    assert found.per_task == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert found.runner_up == (("a",), ("b", "c"))
    assert found.margin == pytest.approx(1.4)


def test_preferred_tasks_weigh_more_and_may_change_the_choice() -> None:
    values = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.2], [0.1, 0.2, 1.0]]).double()
    values[0, 2], values[2, 0] = 0.95, 0.1  # c gains from a, a loses by c
    plain = group_tasks(affinities(values), 2)
    preferring = group_tasks(affinities(values), 2, {"b": 1.0, "c": 8.0})
    assert plain.groups == (("a", "b"), ("c",))
    assert preferring.value == pytest.approx(plain.value)  # c loses nothing alone, however much it weighs
    values[0, 2] = 1.4
    assert group_tasks(affinities(values), 2, {"c": 8.0}).groups == (("a", "c"), ("b",))


def test_an_encoder_a_task_loses_nothing_and_room_that_does_not_help_is_left_empty() -> None:
    apart = group_tasks(affinities(torch.eye(4)), 4)
    assert apart.groups == (("a",), ("b",), ("c",), ("d",))
    assert apart.value == 0
    helping = group_tasks(affinities(torch.ones(4, 4).double() - 0.5 * torch.eye(4).double()), 3)
    assert helping.groups == (("a", "b", "c", "d"),)
    assert helping.value == pytest.approx(4 * 3 * 2 / 4 * 0.5)


def test_where_all_pairs_are_alike_no_shape_of_grouping_is_better_than_another() -> None:
    names, loss = "abcdef", torch.eye(6).double() - 1  # every partner costs every task 1

    def value(*groups: str) -> float:
        return plain_value([[names.index(task) for task in group] for group in groups], loss, [1.0] * 6)

    assert value("abc", "def") == pytest.approx(value("a", "bcdef")) == pytest.approx(-8)
    near = loss.clone()
    near[0, 1] = near[1, 0] = near[2, 3] = near[3, 2] = near[4, 5] = near[5, 4] = -0.95
    assert group_tasks(affinities(near), 3).groups == (("a", "b"), ("c", "d"), ("e", "f"))


def test_a_group_loses_what_its_experts_are_away_from_their_mean() -> None:
    vectors = 3.0 * torch.eye(5).double()  # orthogonal task vectors of one length
    pairs = torch.tensor([[-(((a + b) / 2 - b) ** 2).sum() for b in vectors] for a in vectors])
    for size in (2, 3, 5):
        matrix = AffinityMatrix("made-up", tuple(NAMES[:size]), pairs[:size, :size], True, "weights")
        away = ((vectors[:size].mean(0) - vectors[0]) ** 2).sum()
        assert group_tasks(matrix, 1).per_task["a"] == pytest.approx(-float(away))


def test_where_every_pair_loses_all_encoders_are_used() -> None:
    torch.manual_seed(2)
    matrix = affinities(-torch.rand(6, 6).double().fill_diagonal_(0))
    assert [len(group_tasks(matrix, encoders).groups) for encoders in range(1, 7)] == [1, 2, 3, 4, 5, 6]


def test_ties_fall_to_fewer_encoders_and_then_to_the_order_of_the_tasks() -> None:
    equal = group_tasks(affinities(torch.full((4, 4), 0.1).double()), 3)
    assert equal.groups == (("a", "b", "c", "d"),)
    assert equal.margin == 0
    lossy = group_tasks(affinities(0.1 + 0.2 * torch.eye(4).double()), 2)  # as much in whatever two groups
    assert lossy.groups == (("a",), ("b", "c", "d"))
    assert lossy.runner_up == (("a", "b"), ("c", "d"))
    assert lossy.margin == pytest.approx(0, abs=1e-12)


def test_own_entries_that_are_missing_count_as_the_largest_other_entry() -> None:
    values = torch.tensor([[math.nan, 0.7, 0.1], [0.7, math.nan, 0.2], [0.1, 0.2, math.nan]])
    found = group_tasks(affinities(values, symmetric=True), 2)
    assert found.groups == (("a", "b"), ("c",))
    assert found.per_task == pytest.approx({"a": 0.0, "b": 0.0, "c": 0.0})


def test_a_measure_may_say_what_a_task_is_worth_alone() -> None:
    # Equal experts interfere most, but a task alone has nothing to interfere with.
    values = torch.tensor([[-1.0, -0.3, -0.6], [-0.3, -1.0, -0.6], [-0.6, -0.6, -1.0]])
    matrix = AffinityMatrix("interference", ("a", "b", "c"), values, True, "weights", alone=0.0)
    assert AffinityMatrix.from_json(matrix.to_json()).alone == 0.0
    found = group_tasks(matrix, 2)
    assert found.groups == (("a", "b"), ("c",))
    assert found.value == pytest.approx(-0.6)
    assert group_tasks(affinities(values), 2).groups == (("a", "b", "c"),)  # by own entries sharing would help


def test_what_was_measured_of_every_subset_decides_as_every_partition_says() -> None:
    torch.manual_seed(1)
    subsets = [c for size in (2, 3, 4) for c in combinations("abcd", size)]
    measured = {frozenset(c): dict(zip(c, torch.randn(len(c)).tolist(), strict=True)) for c in subsets}
    weights = {"a": 2.0}

    def value(groups: list[list[int]]) -> float:
        named = [["abcd"[i] for i in group] for group in groups if len(group) > 1]
        return sum(weights.get(t, 1.0) * measured[frozenset(group)][t] for group in named for t in group)

    for encoders in (1, 2, 3, 4):
        found = group_by_measured(measured, encoders, weights)
        best = max(value(p) for p in partitions([0, 1, 2, 3]) if len(p) <= encoders)
        assert found.value == pytest.approx(best)
        assert measured_value(found.groups, measured, weights) == pytest.approx(best)


def test_a_grouping_is_plain_json() -> None:
    record = group_tasks(affinities(torch.eye(2)), 1).to_json()
    assert record["groups"] == [["a", "b"]]
    assert (record["runner_up"], record["margin"], record["mean"]) == (None, None, -1.0)
    assert record["measure"] == "made-up"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoders": 0}, "2 tasks go into 1 to 2 encoders, got 0"),
        ({"encoders": 3}, "2 tasks go into 1 to 2 encoders, got 3"),
        ({"encoders": 1, "weights": {"q": 1.0}}, "a weight for q, which is no task here"),
        ({"encoders": 1, "weights": {"a": 0.0}}, "the weight of a is 0.0, expected a positive number"),
        ({"encoders": 1, "weights": {"a": math.nan}}, "the weight of a is nan"),
        ({"encoders": 1, "method": "guess"}, "unknown search 'guess'"),
    ],
)
def test_wrong_wishes_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(SimoError, match=said):
        group_tasks(affinities(torch.eye(2)), **options)  # type: ignore[arg-type]


def test_a_pair_without_a_value_and_a_set_that_was_not_measured_are_named() -> None:
    with pytest.raises(SimoError, match="made-up has no value of b for a"):
        group_tasks(affinities([[1.0, 0.5], [math.nan, 1.0]]), 1)
    with pytest.raises(SimoError, match="no measured values of a, b, c together"):
        group_by_measured({frozenset(p): dict.fromkeys(p, 0.0) for p in ("ab", "ac", "bc")}, 1)
    with pytest.raises(SimoError, match="expected a finite one of each"):
        group_by_measured({frozenset("ab"): {"a": 1.0, "b": math.nan}}, 1)
    with pytest.raises(SimoError, match="takes up to 12 tasks, there are 13"):
        group_tasks(affinities(torch.eye(13)), 2, method=EXACT)


def test_whole_numbers_are_parted_as_every_partition_says() -> None:
    generator = torch.Generator().manual_seed(2)
    worths = torch.randint(-3, 4, (64,), generator=generator).tolist()  # small, so that there are ties

    def worth(group: tuple[int, ...]) -> int:
        return worths[sum(1 << item for item in group)]

    for groups in range(1, 7):
        found, _ = best_partitions(6, groups, worth)
        keys = sorted(
            (-sum(worth(g) for g in p), len(p), p)
            for p in (tuple(sorted(tuple(sorted(g)) for g in p)) for p in partitions(list(range(6))))
            if len(p) <= groups
        )
        assert found == [key[2] for key in keys[:2]]
