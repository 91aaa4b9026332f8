"""Disparity counts pixels of a stated width, or MTAN's p / 65535; a camera makes metres of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.data.cityscapes.units import PIXELS, PUBLISHED, TYPICAL_DEPTH, Camera, convert, parse_unit, pixels
from simo_merge.errors import SimoError

CAMERA = Camera(baseline=0.209313, focal=2262.52)
UNITS = st.sampled_from([PIXELS, PUBLISHED, pixels(512), pixels(256), pixels(1000)])


def test_the_published_maximum_is_the_one_that_people_printed() -> None:
    assert PUBLISHED.of_stored(32257.0) == pytest.approx(0.4922, abs=5e-5)
    assert PIXELS.of_stored(32257.0) == 126.0


def test_an_error_in_published_units_is_this_many_pixels() -> None:
    error = convert(0.5125, PUBLISHED, PIXELS) - convert(0.5, PUBLISHED, PIXELS)
    assert error == pytest.approx(0.0125 * 65535 / 256) == pytest.approx(3.2, abs=1e-4)


def test_a_quarter_of_the_width_has_a_quarter_of_the_pixels() -> None:
    assert convert(8.0, PIXELS, pixels(512)) == 2.0
    assert pixels(512).of_stored(1025.0) == (1025 - 1) / (256 * 4)


def test_the_stored_1_is_infinitely_far_in_pixels_of_any_width() -> None:
    assert [pixels(width).of_stored(1.0) for width in (1, 128, 333, 512, 2048)] == [0.0] * 5
    assert PUBLISHED.of_stored(1.0) == 1 / 65535


@given(st.integers(1, 65535), UNITS, UNITS)
def test_there_and_back_is_where_one_was(stored: int, source, target) -> None:
    value = source.of_stored(float(stored))
    assert convert(convert(value, source, target), target, source) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert round(target.to_stored(convert(value, source, target))) == stored


@given(st.floats(0.001, 255), UNITS)
def test_depth_and_disparity_are_each_other_s_inverse(disparity: float, unit) -> None:
    values = convert(torch.tensor([disparity], dtype=torch.float64), PIXELS, unit)
    torch.testing.assert_close(CAMERA.disparity(CAMERA.depth(values, unit), unit), values)


def test_depth_is_baseline_times_focal_length_over_disparity() -> None:
    depth = CAMERA.depth(torch.tensor([0.209313 * 2262.52, 1.0, 0.0], dtype=torch.float64))
    assert depth.tolist() == pytest.approx([1.0, 473.57, math.inf], rel=1e-4)


def test_the_typical_values_of_all_units_are_the_same_distance() -> None:
    for unit in (PIXELS, PUBLISHED, pixels(256)):
        assert float(CAMERA.depth(torch.tensor(unit.typical), unit)) == pytest.approx(TYPICAL_DEPTH, rel=1e-5)


def test_a_unit_is_read_from_its_name() -> None:
    assert parse_unit("px@2048") == PIXELS
    assert parse_unit("published") == PUBLISHED
    assert parse_unit("px@256").name == "px@256"


@pytest.mark.parametrize("text", ["px", "px@0", "px@", "pixels", "px@12.5", ""])
def test_an_unknown_unit_tells_the_known_ones(text: str) -> None:
    with pytest.raises(SimoError, match=r"expected px@WIDTH .* or published"):
        parse_unit(text)


def test_metres_are_no_unit_of_disparity() -> None:
    with pytest.raises(SimoError, match=r"metres are the task depth"):
        parse_unit("m")
