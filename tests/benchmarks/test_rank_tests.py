"""Permutation p-values against trying every permutation with scipy's coefficients."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from bench import rank_tests
from bench.rank_tests import Array, compare, family_p, null, ordered_pairs, partners, subsets

stats = pytest.importorskip("scipy.stats")


def coefficient(kind: str, x: list[float], y: list[float]) -> float:
    found = stats.spearmanr(x, y) if kind == "spearman" else stats.kendalltau(x, y)
    return float(found.statistic)


def matrices(tasks: int, seed: int, rounded: bool = False) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, tasks, tasks))
    return (x.round(0), y.round(0)) if rounded else (x, y)


def plain_p(values: list[float]) -> float:
    """The first is the one with true labels."""
    return sum(value >= values[0] - 1e-9 for value in values) / len(values)


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
@pytest.mark.parametrize("rounded", [False, True])
def test_ordered_pairs_are_compared_under_all_permutations_of_rows_and_columns(kind: str, rounded: bool) -> None:
    tasks = 4
    x, y = matrices(tasks, 1, rounded)
    items = list(permutations(range(tasks), 2))
    expected = []
    for to in permutations(range(tasks)):
        moved = x[np.ix_(to, to)]
        expected.append(coefficient(kind, [moved[i] for i in items], [y[i] for i in items]))
    flat = [np.array([m[i] for i in items]) for m in (x, y)]
    assert null(ordered_pairs(tasks), [flat[0]], [flat[1]], kind)[0] == pytest.approx(expected)
    found = compare(ordered_pairs(tasks), [flat[0]], [flat[1]], kind)
    assert found.value == pytest.approx(expected[0])
    assert found.p == pytest.approx(plain_p(expected))


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_partners_are_ranked_for_each_target_apart(kind: str) -> None:
    tasks = 4
    x, y = matrices(tasks, 2)
    y += 100 * np.arange(tasks)  # what a target's level is plays no part
    items = list(permutations(range(tasks), 2))
    expected = []
    for to in permutations(range(tasks)):
        moved = x[np.ix_(to, to)]
        columns = [[s for s in range(tasks) if s != t] for t in range(tasks)]
        each = [coefficient(kind, [moved[s, t] for s in c], [y[s, t] for s in c]) for t, c in enumerate(columns)]
        expected.append(sum(each) / tasks)
    found = null(partners(tasks), [np.array([x[i] for i in items])], [np.array([y[i] for i in items])], kind)
    assert found[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_sets_are_ranked_among_those_of_their_size_and_seeds_share_a_permutation(kind: str) -> None:
    tasks, sizes, generator = 5, (2, 3), np.random.default_rng(3)
    items = [group for size in sizes for group in combinations(range(tasks), size)]
    said, truth = generator.normal(size=(2, 2, len(items)))  # two seeds each
    truth[:, :10] += 50  # that small sets are better plays no part
    expected = []
    for to in permutations(range(tasks)):
        total = 0.0
        for x, y in zip(said, truth, strict=True):
            of = dict(zip(items, x, strict=True))
            moved = [of[tuple(sorted(to[i] for i in group))] for group in items]
            for start, end in ((0, 10), (10, 20)):
                total += coefficient(kind, moved[start:end], list(y[start:end])) / 4
        expected.append(total)
    found = compare(subsets(items, tasks), list(said), list(truth), kind)
    assert found.value == pytest.approx(expected[0])
    assert found.p == pytest.approx(plain_p(expected))
    assert sum(found.by_seed) / 2 == pytest.approx(found.value)


def test_the_same_ranking_is_1_and_as_unlikely_as_there_are_permutations() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=12)
    for kind in ("spearman", "kendall"):
        found = compare(ordered_pairs(4), [values], [3 * values + 1], kind)
        assert found.value == pytest.approx(1)
        assert found.p == pytest.approx(1 / 24)
        assert compare(ordered_pairs(4), [values], [-values], kind).p == 1


def test_a_measure_that_says_the_same_of_all_is_worth_nothing() -> None:
    values = np.arange(12.0)
    for kind in ("spearman", "kendall"):
        found = compare(ordered_pairs(4), [np.ones(12)], [values], kind)
        assert (found.value, found.p) == (0, 1)


def test_more_measures_make_the_best_of_them_less_surprising() -> None:
    generator = np.random.default_rng(5)
    truth, said = generator.normal(size=12), generator.normal(size=(6, 12))
    nulls = [null(ordered_pairs(4), [x], [truth], "spearman") for x in said]
    alone, together = [float((n[0] >= n[0, 0] - 1e-9).mean()) for n in nulls], family_p(nulls)
    assert family_p(nulls[:1]) == pytest.approx(alone[:1])
    assert all(many >= one for many, one in zip(together, alone, strict=True))
    best = [max(n[0, p] for n in nulls) for p in range(24)]
    assert together == pytest.approx([sum(b >= n[0, 0] - 1e-9 for b in best) / 24 for n in nulls])


def test_of_many_tasks_some_permutations_are_drawn_and_the_true_one_is_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank_tests, "DRAWN", 50)
    field = ordered_pairs(8)
    assert field.moved.shape == (51, 56)
    assert (field.moved[0] == np.arange(56)).all()
    values = np.random.default_rng(0).normal(size=56)
    assert compare(field, [values], [values], "spearman").p == pytest.approx(1 / 51)


def test_under_the_null_p_values_are_as_small_as_they_say() -> None:
    field, generator = ordered_pairs(4), np.random.default_rng(7)
    found = [compare(field, [generator.normal(size=12)], [generator.normal(size=12)], "spearman").p for _ in range(400)]
    for level in (0.1, 0.5):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.07)
