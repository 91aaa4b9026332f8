"""Rank agreement: Spearman's rho, against SciPy's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.errors import SimoError
from simo_merge.merging import WeightAverage
from simo_merge.selection import Candidate, MethodSelection, rank_agreement, spearman

stats = pytest.importorskip("scipy.stats")


def selection(scores: dict[float, float]) -> MethodSelection:
    candidates = tuple(Candidate({"scale": scale, "density": 0.2}, score) for scale, score in scores.items())
    return MethodSelection(WeightAverage(), {}, candidates, "x")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=2, max_size=12))
def test_it_is_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    found = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_the_same_order_is_1_and_the_opposite_is_minus_1_whatever_the_order_of_trial() -> None:
    first = selection({0.1: 1.0, 0.2: 5.0, 0.3: 2.0})
    assert rank_agreement(first, selection({0.3: -10.0, 0.1: -90.0, 0.2: 40.0})) == pytest.approx(1)
    assert rank_agreement(first, selection({0.1: 9.0, 0.2: 1.0, 0.3: 3.0})) == pytest.approx(-1)


def test_candidates_without_a_finite_score_are_left_out() -> None:
    first = selection({0.1: 1.0, 0.2: math.nan, 0.3: 2.0, 0.4: 3.0})
    assert rank_agreement(first, selection({0.1: 4.0, 0.2: 0.0, 0.3: 5.0, 0.4: 6.0})) == pytest.approx(1)


def test_other_candidates_or_too_few_are_refused() -> None:
    with pytest.raises(SimoError, match=r"different candidates \(2 and 2\): .*\"scale\": 0.2"):
        rank_agreement(selection({0.1: 1.0, 0.2: 2.0}), selection({0.1: 1.0, 0.3: 2.0}))
    with pytest.raises(SimoError, match="two candidates or more with finite scores, there are 1"):
        rank_agreement(selection({0.1: 1.0, 0.2: math.nan}), selection({0.1: 1.0, 0.2: 2.0}))
