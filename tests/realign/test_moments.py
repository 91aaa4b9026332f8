"""Moments: sums that add up over chunks and workers, and the statistics that follow from them."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.errors import SimoError
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.moments import Moments, tap_moments
from tests.tiny import related_features


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    for name in ("x", "xx"):
        assert torch.allclose(getattr(found, name), getattr(expected, name))
    for name in ("y", "xy", "yy"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[task], theirs[task]) for task in ours)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_moments_of_parts_add_up_to_those_of_the_whole(sizes: list[int]) -> None:
    x, y = torch.randn(sum(sizes), 3), torch.randn(sum(sizes), 3)
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    assert_same(reduce(add, (Moments.of(a, {"t": b}) for a, b in parts)), Moments.of(x, {"t": y}))


def test_the_statistics_are_those_of_the_tokens() -> None:
    x, y = torch.randn(50, 4) + 3, torch.randn(50, 4) * 5 - 1
    moments = Moments.of(x, {"t": y})
    a, b = x.double(), y.double()
    assert torch.allclose(moments.mean_x(), a.mean(0))
    assert torch.allclose(moments.mean_y("t"), b.mean(0))
    assert torch.allclose(moments.deviation_x(), a.std(0, correction=0))
    assert torch.allclose(moments.deviation_y("t"), b.std(0, correction=0))
    together = torch.cov(torch.cat([a, b], dim=1).T, correction=0) * 50
    assert torch.allclose(moments.scatter_xx(), together[:4, :4])
    assert torch.allclose(moments.scatter_xy("t"), together[:4, 4:])


def test_a_deviation_small_beside_the_mean_keeps_its_digits() -> None:
    x = 1000 + 0.01 * torch.randn(500, 1)
    assert torch.allclose(Moments.of(x, {}).deviation_x(), x.double().std(0, correction=0), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e6])
def test_a_constant_channel_has_no_deviation_and_no_scatter_at_all(value: float) -> None:
    x = torch.randn(997, 2)
    x[:, 1] = value
    moments = Moments.of(x, {"t": x})
    assert moments.deviation_x()[1] == moments.deviation_y("t")[1] == 0
    assert moments.deviation_x()[0] > 0.9
    for scatter in (moments.scatter_xx(), moments.scatter_xy("t")):
        assert not scatter[1].any()
        assert not scatter[:, 1].any()


def test_patches_and_each_prefix_token_are_groups_of_their_own() -> None:
    patches, prefix = torch.randn(5, 6, 3), torch.randn(5, 2, 3)
    moments = tap_moments(patches, prefix, {"t": patches + 1}, {"t": prefix - 1})
    assert [group.count for group in moments.groups] == [30, 5, 5]
    assert torch.allclose(moments.patches.mean_x(), patches.double().mean((0, 1)))
    for i, group in enumerate(moments.prefix):
        assert torch.allclose(group.mean_y("t"), prefix[:, i].double().mean(0) - 1)


def test_streamed_chunks_of_images_give_the_moments_of_all_at_once() -> None:
    features = related_features(count=7)
    for found, expected in zip(feature_moments(features, chunk=3), feature_moments(features), strict=True):
        for ours, theirs in zip(found.groups, expected.groups, strict=True):
            assert_same(ours, theirs)


def test_features_of_another_shape_are_refused_and_the_task_is_named() -> None:
    with pytest.raises(SimoError, match=r"depth have shape \(4, 3\), the merged ones \(5, 3\)"):
        Moments.of(torch.randn(5, 3), {"depth": torch.randn(4, 3)})
