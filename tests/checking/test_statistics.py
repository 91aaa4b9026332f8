"""Counting in bounded memory against counting everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.checking.findings import named, percent
from simo_merge.checking.statistics import ValueHistogram, spaced

numbers = st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=60)


@given(numbers, st.floats(0.01, 1))
def test_quantiles_are_within_a_bin_of_sorting(values: list[float], share: float) -> None:
    histogram = ValueHistogram()
    histogram.add(np.array(values))
    exact = sorted(values)[int(np.ceil(share * len(values) - 1e-9)) - 1]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.023, abs=1e-6)


@given(numbers)
def test_a_linear_histogram_over_everything_has_every_value(values: list[float]) -> None:
    histogram = ValueHistogram()
    for part in np.array_split(np.array(values), 3):
        histogram.add(part)
    assert histogram.total == len(values)
    assert histogram.linear(-2e6, 2e6, 7).sum() == pytest.approx(len(values))


def test_a_linear_histogram_is_that_of_numpy_for_many_values() -> None:
    values = np.random.default_rng(0).gamma(4, 0.8, 100_000)
    histogram = ValueHistogram()
    histogram.add(values)
    exact = np.histogram(values, 30, (0, 9))[0]
    assert np.abs(histogram.linear(0, 9, 30) - exact).max() < 0.02 * exact.max()


@given(st.integers(1, 200), st.integers(1, 250))
def test_spaced_indices_are_ascending_and_as_many_as_asked_for(count: int, limit: int) -> None:
    indices = spaced(count, limit)
    assert len(indices) == min(count, limit)
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert limit == 1 or indices[-1] == count - 1


def test_texts_for_people() -> None:
    assert [percent(share) for share in (0, 1, 0.3412, 0.000213)] == ["0 %", "100 %", "34.1 %", "0.021 %"]
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
