"""Moments in folds: one pass gives what separate sums over the images of each fold would."""

from __future__ import annotations

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.realign import CalibrationFeatures
from simo_merge.realign.folds import FoldedMoments, fold_bounds, folded_moments
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.moments import Moments
from tests.realign.test_moments import assert_same
from tests.tiny import deep_features, related_features


def assert_near(found: Moments, expected: Moments, rtol: float) -> None:
    """Equal scatters and means, in units of the channels' deviations."""
    assert found.count == expected.count
    unit = expected.deviation_x()
    assert torch.allclose(found.mean_x() / unit, expected.mean_x() / unit, atol=rtol)
    scale = torch.outer(unit, unit) * expected.count
    assert torch.allclose(found.scatter_xx() / scale, expected.scatter_xx() / scale, atol=rtol)
    for task in expected.y:
        scale = torch.outer(unit, expected.deviation_y(task)) * expected.count
        assert torch.allclose(found.scatter_xy(task) / scale, expected.scatter_xy(task) / scale, atol=rtol)
        assert torch.allclose(found.deviation_y(task), expected.deviation_y(task), rtol=rtol)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (12, [2, 2, 3, 2, 3]), (100, [20] * 5)])
def test_folds_are_runs_of_neighbours_that_cover_all_images_once(count: int, sizes: list[int]) -> None:
    bounds = fold_bounds(count)
    assert [end - start for start, end in bounds] == sizes
    assert [i for start, end in bounds for i in range(start, end)] == list(range(count))


@pytest.mark.parametrize("joint", [True, False])
def test_each_fold_has_the_moments_of_its_images_alone(joint: bool) -> None:
    found = deep_features()
    folded = folded_moments(found, joint, precise=True, chunk=2)
    for fold, (start, end) in zip(folded.folds, fold_bounds(12), strict=True):
        alone = feature_moments(found.subset(slice(start, end)))
        for tap in range(2):
            for ours, theirs in zip(folded.tap(fold, tap).groups, alone[tap].groups, strict=True):
                assert_same(ours, theirs)


def test_a_tap_that_reads_all_has_the_moments_of_the_concatenated_taps() -> None:
    found = deep_features()
    folded = folded_moments(found, joint=True, precise=True)
    moments = folded.tap(folded.total(), 1, "all")
    x = torch.cat([p.flatten(0, 1) for p in found.merged.patches], dim=1).double()
    y = found.experts["b"].patches[1].flatten(0, 1).double()
    assert torch.allclose(moments.patches.xx, x.T @ x)
    assert torch.allclose(moments.patches.xy["b"], x.T @ y)
    assert torch.allclose(moments.patches.yy["b"], y.square().sum(0))
    assert moments.own("b") == slice(6, 14)
    z = torch.cat([p[:, 1] for p in found.merged.prefix], dim=1).double()
    assert torch.allclose(moments.prefix[1].xy["b"], z.T @ found.experts["b"].prefix[1][:, 1].double())


def test_folds_add_up_to_the_whole_and_over_workers() -> None:
    found = deep_features(count=20)
    whole = folded_moments(found, joint=True, precise=True)
    for ours, theirs in zip(
        whole.total()[0].groups, folded_moments(found, True, folds=1).folds[0][0].groups, strict=True
    ):
        assert_near(ours, theirs, 1e-5)
    first, second = (
        folded_moments(found.subset(slice(start, end)), joint=True, precise=True) for start, end in ((0, 10), (10, 20))
    )
    together: FoldedMoments = first + second
    for ours, theirs in zip(together.total()[0].groups, whole.total()[0].groups, strict=True):
        assert_same(ours, theirs)
    rest = whole.total()[0] - whole.folds[2][0]
    others = deep_subset(found, [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19])
    for ours, theirs in zip(
        rest.groups, folded_moments(others, True, folds=1, precise=True).folds[0][0].groups, strict=True
    ):
        assert_same(ours, theirs)


def deep_subset(found: CalibrationFeatures, index: list[int]) -> CalibrationFeatures:
    parts = [found.subset(slice(i, i + 1)) for i in index]

    def joined(name: str | None) -> object:
        ours = [p.merged if name is None else p.experts[name] for p in parts]
        return type(ours[0])(
            tuple(torch.cat(t) for t in zip(*(o.patches for o in ours), strict=True)),
            tuple(torch.cat(t) for t in zip(*(o.prefix for o in ours), strict=True)),
            ours[0].grid,
            ours[0].image_size,
            tuple(k for o in ours for k in o.keys),
        )

    return CalibrationFeatures(joined(None), {t: joined(t) for t in found.experts})  # type: ignore[arg-type, misc]


def test_products_in_float32_keep_their_digits_beside_a_large_mean() -> None:
    found = related_features(count=30)
    for part in (found.merged, *found.experts.values()):
        part.patches[0].add_(torch.tensor([1e4, 0, 0, -300, 0, 0, 0, 0]))
    exact = folded_moments(found, joint=False, folds=1, precise=True).total()[0]
    fast = folded_moments(found, joint=False, folds=1).total()[0]
    assert_near(fast.patches, exact.patches, 2e-6)
    naive = found.merged.patches[0].flatten(0, 1)
    assert not torch.allclose((naive.T @ naive).double()[0, 0], exact.patches.xx[0, 0], rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e6])
def test_a_constant_channel_stays_exactly_still_in_float32(value: float) -> None:
    found = related_features(count=13)
    found.merged.patches[0][..., 2] = value
    folded = folded_moments(found, joint=False)
    rest = folded.total()[0] - folded.folds[0][0]
    for moments in (*(f[0] for f in folded.folds), folded.total()[0], rest):
        assert moments.patches.deviation_x()[2] == 0
        assert not moments.patches.scatter_xy("a")[2].any()


def test_all_taps_cannot_be_read_from_moments_of_each_alone() -> None:
    folded = folded_moments(deep_features(), joint=False)
    with pytest.raises(SimoError, match="joint=True"):
        folded.tap(folded.total(), 0, "all")
