"""Feature distributions in a plane: projections that a plain PCA gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Aligner
from simo_merge.realign import feature_planes
from tests.tiny import deep_features, features


def plain(y: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of tokens along the two leading right singular vectors of y, and the shares of variance."""
    mean = y.mean(0)
    _, values, directions = np.linalg.svd(y - mean, full_matrices=False)
    signs = np.sign([d[np.abs(d).argmax()] for d in directions[:2]])
    scores = (tokens - mean) @ (directions[:2] * signs[:, None]).T
    return scores / (values[0] / np.sqrt(len(y))), values[:2] ** 2 / (values**2).sum()


def test_all_three_are_seen_along_the_experts_directions() -> None:
    found = deep_features()
    merged, expert = found.merged, found.experts["a"]
    aligner = Aligner("shift", (6, 8), 2)
    for parameter in aligner.parameters():
        torch.nn.init.normal_(parameter)
    for tap, plane in enumerate(feature_planes(merged, expert, (2, 5), aligner, tokens=10**6)):
        y, x = (f.patches[tap].flatten(0, 1).double().numpy() for f in (expert, merged))
        shift = aligner.taps[tap].patch_offset.detach().double().numpy()  # type: ignore[union-attr]
        assert plane.aligned is not None
        for seen, tokens in ((plane.expert, y), (plane.merged, x), (plane.aligned, x + shift)):
            scores, shares = plain(y, tokens)
            assert np.allclose(seen.numpy(), scores, atol=1e-4)
        assert plane.explained == pytest.approx(tuple(shares), rel=1e-6)
        assert float(plane.expert[:, 0].std(correction=0)) == pytest.approx(1, rel=1e-5)
    assert [plane.block for plane in feature_planes(merged, expert, (2, 5))] == [2, 5]


def test_fewer_tokens_are_the_same_ones_of_each_distribution_spread_over_all_images() -> None:
    found = deep_features(count=9)
    merged, expert = found.merged, found.experts["a"]
    aligner = Aligner("identity", (6, 8), 2)
    (some, _), (whole, _) = (feature_planes(merged, expert, (2, 5), aligner, n) for n in (20, 10**6))
    places = np.linspace(0, 9 * 15 - 1, 20).round().astype(int)
    assert {p // 15 for p in places} == set(range(9))
    assert torch.allclose(some.expert, whole.expert[places])
    assert torch.allclose(some.merged, whole.merged[places])
    assert some.aligned is not None
    assert torch.allclose(some.aligned, some.merged)
    assert feature_planes(merged, expert, (2, 5))[0].aligned is None


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_constant_and_narrow_features_have_finite_planes(channels: int) -> None:
    constant = features(torch.ones(3, 4, channels))
    (plane,) = feature_planes(features(torch.randn(3, 4, channels)), constant, (0,))
    assert plane.expert.abs().max() == 0
    assert all(part.isfinite().all() and part.shape == (12, 2) for part in (plane.expert, plane.merged))
    varied = features(torch.randn(3, 4, channels))
    assert feature_planes(varied, varied, (0,))[0].expert.isfinite().all()


def test_features_of_other_images_are_refused() -> None:
    with pytest.raises(SimoError, match="2 merged and 3 expert images"):
        feature_planes(features(torch.ones(2, 4, 2)), features(torch.ones(3, 4, 2)), (0,))
