"""Distances at the taps against plain float64 arithmetic."""

from __future__ import annotations

import pytest
import torch

from simo_merge.models import Aligner
from simo_merge.realign import tap_distances
from tests.tiny import features, related_features


def test_the_distances_are_those_of_the_definitions() -> None:
    found = related_features()
    (distance,) = tap_distances(found.merged, found.experts["a"], (3,))
    x, y = found.merged.patches[0].double(), found.experts["a"].patches[0].double()
    cosine = 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    unexplained = ((x - y) ** 2).sum() / ((y - y.mean((0, 1))) ** 2).sum()
    assert distance.block == 3
    assert distance.l1 == pytest.approx(float((x - y).abs().mean()), rel=1e-5)
    assert distance.cosine == pytest.approx(float(cosine.mean()), rel=1e-4)
    assert distance.explained_variance == pytest.approx(float(1 - unexplained), rel=1e-4, abs=1e-5)


def test_equal_features_have_no_distance() -> None:
    expert = related_features().experts["a"]
    (distance,) = tap_distances(expert, expert, (0,))
    assert (distance.l1, distance.explained_variance) == (0, 1)
    assert distance.cosine == pytest.approx(0, abs=1e-6)


def test_the_mean_of_the_expert_explains_nothing() -> None:
    expert = related_features(prefix=0).experts["a"]
    mean = features(expert.patches[0].mean((0, 1)).expand_as(expert.patches[0]))
    assert tap_distances(mean, expert, (0,))[0].explained_variance == pytest.approx(0, abs=1e-5)


def test_an_aligner_is_applied_before_measuring() -> None:
    found = related_features()
    aligner = Aligner("affine", (8,), 2)
    aligner.get_parameter("taps.0.patch_scale").data.fill_(2.0)
    doubled = features(found.merged.patches[0] * 2, found.merged.prefix[0])
    assert tap_distances(found.merged, found.experts["a"], (0,), aligner) == tap_distances(
        doubled, found.experts["a"], (0,)
    )


def test_an_expert_that_never_varies_gives_finite_distances() -> None:
    still = features(torch.ones(2, 3, 4))
    (distance,) = tap_distances(features(torch.zeros(2, 3, 4)), still, (0,))
    assert all(torch.isfinite(torch.tensor([distance.l1, distance.cosine, distance.explained_variance])))
