"""Distances at the taps against plain float64 arithmetic."""

from __future__ import annotations

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Aligner
from simo_merge.realign import distances, tap_distances
from simo_merge.realign.distances import linear_cka
from tests.tiny import deep_features, features, related_features


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


def test_no_more_is_kept_of_the_features_than_what_cka_is_measured_on() -> None:
    y = torch.randn(64, 100, 4)
    expert = distances._Expert(y, cka=True, device=torch.device("cpu"))
    for part in y.split(32):
        expert.add(part)
    kept = sum(tokens.untyped_storage().nbytes() for tokens in expert.thinned)
    assert kept == 4 * 4 * len(range(0, 6400, 4))


def test_a_token_of_norm_zero_is_as_far_as_a_direction_at_right_angles() -> None:
    x, y = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    x[0, 1] = 2.0
    (distance,) = tap_distances(features(x), features(y), (0,))
    assert distance.cosine == pytest.approx(0.5, abs=1e-6)


def test_features_of_other_images_are_refused() -> None:
    with pytest.raises(SimoError, match="of 2 merged and 3 expert images were given; both must be of the same images"):
        tap_distances(features(torch.zeros(2, 3, 4)), features(torch.zeros(3, 3, 4)), (0,))


def test_cka_is_that_of_the_definition_by_gram_matrices() -> None:
    x, y = torch.randn(40, 5), torch.randn(40, 7)
    centre = torch.eye(40) - 1 / 40
    one, two = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert linear_cka(x, y) == pytest.approx(float((one * two).sum() / (one.norm() * two.norm())), rel=1e-4)


def test_a_turn_and_a_scale_do_not_matter_to_cka_and_a_still_channel_gives_none() -> None:
    x = torch.randn(60, 6)
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, torch.ones(60, 6)) == 0


def test_many_tokens_are_thinned_evenly() -> None:
    x, y = torch.randn(100, 4), torch.randn(100, 4)
    assert linear_cka(x, y, tokens=25) == linear_cka(x[::4], y[::4])


def test_images_are_taken_a_few_at_a_time_and_give_what_all_at_once_would(monkeypatch: pytest.MonkeyPatch) -> None:
    found = deep_features(count=7, tokens=5)
    monkeypatch.setattr(distances, "_CKA_TOKENS", 12)  # every third token of 35
    (whole, _) = tap_distances(found.merged, found.experts["a"], (0, 1), cka=True)
    monkeypatch.setattr(distances, "_CHUNK", 2)
    (parts, _) = tap_distances(found.merged, found.experts["a"], (0, 1), cka=True)
    for name in ("l1", "cosine", "explained_variance", "cka"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    x, y = (part.patches[0].flatten(0, 1)[::3] for part in (found.merged, found.experts["a"]))
    assert whole.cka == pytest.approx(linear_cka(x, y), rel=1e-6)


def test_an_aligner_that_reads_all_taps_is_measured_too() -> None:
    found = deep_features()
    aligner = Aligner("cross-tap", (6, 8), 2, rank=3)
    torch.nn.init.normal_(aligner.get_parameter("taps.1.change.up"))
    first, second = tap_distances(found.merged, found.experts["a"], (0, 1), aligner)
    plain = tap_distances(found.merged, found.experts["a"], (0, 1))
    assert first == plain[0]
    assert second.l1 != plain[1].l1
