"""Curves of delta against cost, and where one overtakes another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.curves import Point, cost, curve, meeting, value
from tests.benchmarks.worlds import made_up


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(x, y, 0.0, 1) for x, y in pairs]


def test_between_two_points_a_curve_is_linear_in_the_logarithm_of_cost() -> None:
    line = points((1, 0), (100, 2))
    assert value(line, 10) == pytest.approx(1)
    assert math.isnan(value(line, 0.5))
    assert value(line, 1e6) == 2


def test_two_lines_cross_where_their_formulas_meet() -> None:
    """a = log10 x - 1 and b = 1 - log10 x meet at 10."""
    found = meeting(points((1, -1), (100, 1)), points((1, 1), (100, -1)), ("a", "b"))
    assert found.crossings == pytest.approx((10,))
    assert (found.begins, found.ahead, found.ahead_at_end) == (1, "b", "a")


def test_a_point_is_overtaken_where_a_curve_reaches_its_delta() -> None:
    rising = points((10, -8), (1000, 0))
    found = meeting(points((3, -4)), rising, ("point", "rising"))
    assert found.begins == 10
    assert found.crossings == pytest.approx((100,))
    assert (found.ahead, found.ahead_at_end) == ("point", "rising")


def test_curves_that_touch_do_not_cross() -> None:
    found = meeting(points((1, 1), (10, 0), (100, 1)), points((1, 0)), ("a", "b"))
    assert found.crossings == ()
    assert (found.ahead, found.ahead_at_end) == ("a", "a")


def test_equal_curves_have_no_leader() -> None:
    line = points((1, 1), (10, 2))
    found = meeting(line, line, ("a", "b"))
    assert (found.ahead, found.crossings, found.ahead_at_end) == ("neither", (), "neither")


lines = st.dictionaries(st.integers(0, 8), st.integers(-20, 20), min_size=1, max_size=5).map(
    lambda found: points(*((2.0**x, float(y)) for x, y in sorted(found.items())))
)


@given(lines, lines)
def test_crossings_are_those_that_a_fine_grid_sees(a: list[Point], b: list[Point]) -> None:
    found = meeting(a, b, ("a", "b"))
    grid = np.linspace(math.log(found.begins), math.log(512), 20_011)

    def on_grid(line: list[Point]) -> np.ndarray:
        return np.interp(grid, [math.log(p.x) for p in line], [p.delta for p in line])

    gaps = on_grid(a) - on_grid(b)
    seen = gaps[np.abs(gaps) > 1e-6]
    assume(len(seen))
    changes = int((np.sign(seen[1:]) != np.sign(seen[:-1])).sum())
    assert len(found.crossings) == changes
    for x in found.crossings:
        assert value(a, x) == pytest.approx(value(b, x), abs=1e-6)


def test_a_curve_has_the_mean_over_seeds_at_each_number_of_steps() -> None:
    rows = [made_up("m+head", d, seed=s, steps=n) for n, s, d in ((10, 0, -4), (10, 1, -2), (20, 0, -1))]
    found = curve(rows, "steps")
    assert [(p.x, p.delta, p.seeds) for p in found] == [(10, -3, 2), (20, -1, 1)]
    assert found[0].spread == pytest.approx(math.sqrt(2))


def test_seconds_count_merge_capture_and_fit_and_the_experts_where_they_are_needed() -> None:
    experts = [made_up("experts", 0, fit_seconds=100.0), made_up("experts", 0, seed=1, fit_seconds=7.0)]
    aligned = made_up("m+head", -1, merge_seconds=2.0, capture_seconds=3.0, fit_seconds=5.0, steps=9)
    joint = made_up("joint-equal", -1, fit_seconds=50.0, steps=0)
    assert cost(aligned, "seconds", experts) == 10
    assert cost(aligned, "seconds with experts", experts) == 110
    assert cost(joint, "seconds with experts", experts) == 50
    assert cost(aligned, "steps") == 9
    assert cost(joint, "steps") == 1  # a logarithm has no place for 0
