"""Maps of the error of features: each patch by hand, and in the mean the distance that is told elsewhere."""

from __future__ import annotations

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Aligner
from simo_merge.realign import error_maps, tap_distances
from simo_merge.realign.features import Features
from tests.tiny import deep_features, features


def shifted(merged: Features) -> Aligner:
    aligner = Aligner("shift", [p.shape[-1] for p in merged.patches], merged.prefix[0].shape[1])
    for parameter in aligner.parameters():
        torch.nn.init.normal_(parameter)
    return aligner


@pytest.mark.parametrize("aligned", [False, True])
def test_every_patch_has_its_own_error_in_its_place(aligned: bool) -> None:
    found = deep_features(count=70)  # more than are taken at a time
    merged, expert = found.merged, found.experts["a"]
    grid = (3, 5)
    merged, expert = (Features(f.patches, f.prefix, grid, f.image_size, f.keys) for f in (merged, expert))
    aligner = shifted(merged) if aligned else None
    maps = error_maps(merged, expert, aligner)
    assert maps.shape == (70, 2, 3, 5)
    for image, tap, row, column in ((0, 0, 0, 0), (69, 1, 2, 4), (64, 0, 1, 3)):
        y = expert.patches[tap]
        x = merged.patches[tap]
        if aligner is not None:
            x = x + aligner.taps[tap].patch_offset.detach()  # type: ignore[operator]
        variance = sum(float((token - y.mean((0, 1))).square().sum()) for token in y.flatten(0, 1)) / (70 * 15)
        miss = x[image, 5 * row + column] - y[image, 5 * row + column]
        assert float(maps[image, tap, row, column]) == pytest.approx(float(miss.square().sum()) / variance, rel=1e-4)


def test_the_mean_of_a_map_is_what_is_not_explained() -> None:
    found = deep_features()
    merged, expert = found.merged, found.experts["b"]
    aligner = shifted(merged)
    for one in (None, aligner):
        means = error_maps(merged, expert, one).mean(dim=(0, 2, 3))
        expected = [1 - d.explained_variance for d in tap_distances(merged, expert, (2, 5), one)]
        assert means.tolist() == pytest.approx(expected, rel=1e-5)


def test_constant_features_have_finite_maps_and_other_images_are_refused() -> None:
    constant = features(torch.ones(3, 4, 2))
    assert error_maps(features(torch.ones(3, 4, 2)), constant).abs().max() == 0
    assert error_maps(features(torch.zeros(3, 4, 2)), constant).isfinite().all()
    with pytest.raises(SimoError, match="same images"):
        error_maps(features(torch.ones(2, 4, 2)), constant)
