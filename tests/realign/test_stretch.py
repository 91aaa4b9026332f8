"""The stretch: aligned patches deviate as the expert's do, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from scipy.linalg import inv, sqrtm
from torch import Tensor

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel, fold_aligners
from simo_merge.models.aligners import Aligner, StretchedTap, aligner_from_config
from simo_merge.realign import Auto, CalibrationFeatures, LinearSurgery, OnlineSurgery, capture_all, realign
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.stretch import LIMIT, Stretch, along_channels, along_directions, covariance, stretch_patches
from tests.realign.degenerate import DEGENERATE, fitted
from tests.tiny import TinyData

METHODS = [
    LinearSurgery(rank=4, stretch="channels"),
    LinearSurgery(rank=None, stretch="channels"),
    LinearSurgery(rank=4, reads="all", stretch="channels"),
    LinearSurgery(rank="auto", ridge="auto", stretch="channels"),
    Auto(budget=None, stretch="channels"),
    LinearSurgery(rank=None, stretch="directions"),
    LinearSurgery(rank=4, stretch="directions"),
    LinearSurgery(rank=4, reads="all", stretch="directions"),
    Auto(budget=None, stretch="directions"),
]


@pytest.fixture
def captured(merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData) -> CalibrationFeatures:
    return capture_all(merged, {e.task.name: e for e in experts}, images)


def aligned_patches(
    model: MultiTaskModel, task: str, captured: CalibrationFeatures
) -> tuple[list[Tensor], list[Tensor]]:
    patches, prefix = captured.merged.aligned(model.aligner(task))
    return [p.flatten(0, 1).double() for p in patches], prefix


def plain(method: LinearSurgery | Auto) -> LinearSurgery | Auto:
    options = method.parameters() | {"stretch": "none"}
    return type(method)(**options)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label + str(getattr(m, "rank", "")) + m.reads)
def test_aligned_patches_deviate_as_the_experts_do(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    captured: CalibrationFeatures,
    method: LinearSurgery | Auto,
) -> None:
    stretched = realign(merged, experts, images, method, captured, "cpu")
    before = realign(merged, experts, images, plain(method), captured, "cpu")
    for task in merged.tasks:
        ours, prefix = aligned_patches(stretched, task, captured)
        least_squares, its_prefix = aligned_patches(before, task, captured)
        for tap, module in enumerate(stretched.aligner(task).taps):
            assert torch.allclose(prefix[tap], its_prefix[tap], atol=1e-5)
            assert torch.allclose(ours[tap].mean(0), least_squares[tap].mean(0), atol=1e-4)
            if not isinstance(module, StretchedTap):  # a tap that was chosen to stay as it is
                assert torch.equal(ours[tap], least_squares[tap])
                continue
            wanted = captured.experts[task].patches[tap].flatten(0, 1).double().std(0, correction=0)
            paler = least_squares[tap].std(0, correction=0)
            expected = paler * (wanted / paler).clamp(1 / LIMIT, LIMIT)
            if method.stretch == "directions":
                assert (ours[tap].std(0, correction=0) / wanted).log().abs().mean() < (
                    paler / wanted
                ).log().abs().mean()
                continue
            assert torch.allclose(ours[tap].std(0, correction=0), expected, rtol=1e-3, atol=1e-6)


def test_along_directions_it_is_the_optimal_transport_between_the_covariances() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.eye(6, dtype=torch.float64) + 0.05 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    theirs = torch.cov(torch.randn(6, 400, generator=generator, dtype=torch.float64))
    ours = mixed @ (0.8 * theirs) @ mixed.T
    deviations = theirs.diagonal().sqrt()
    found = along_directions(ours, theirs, deviations)
    # Plainly: units of the deviations, scipy's root of a matrix, and the formula without a floor.
    units = torch.outer(deviations, deviations)
    a, b = (ours / units).numpy(), (theirs / units).numpy()
    root = sqrtm(a).real
    plainly = inv(root) @ sqrtm(root @ b @ root).real @ inv(root)
    expected = torch.from_numpy(plainly) * torch.outer(deviations, 1 / deviations)
    assert torch.allclose(found, expected, atol=2e-3)
    assert torch.allclose(found @ ours @ found.T, theirs, rtol=1e-2, atol=1e-3)
    assert torch.allclose(along_directions(theirs, theirs, deviations), torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_no_direction_is_stretched_beyond_the_limit() -> None:
    theirs = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    ours = torch.diag(torch.tensor([1e-9, 1.0, 100.0, 1 / 2.25], dtype=torch.float64))
    stretches = along_directions(ours, theirs, theirs.diagonal()).diagonal()
    expected = torch.tensor([LIMIT, 1.0, 1 / LIMIT, 1.5], dtype=torch.float64)
    assert torch.allclose(stretches, expected, rtol=1e-3)
    assert torch.allclose(along_channels(ours, theirs.diagonal()), expected, rtol=1e-6)


def test_channels_that_neither_knows_stay_as_they_are() -> None:
    theirs = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    found = along_directions(theirs * 0.64, theirs, theirs.diagonal().sqrt())
    assert torch.allclose(found.diagonal(), torch.tensor([1.25, 1.0], dtype=torch.float64), rtol=1e-2)


def test_a_covariance_that_rounding_made_negative_counts_as_the_floor() -> None:
    theirs = torch.eye(3, dtype=torch.float64)
    deviations = torch.ones(3, dtype=torch.float64)
    ours = torch.diag(torch.tensor([-0.3, 1.0, 1 / 2.25], dtype=torch.float64))
    expected = torch.tensor([LIMIT, 1.0, 1.5], dtype=torch.float64)
    assert torch.allclose(along_directions(ours, theirs, deviations).diagonal(), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 3])
def test_a_tiny_ridge_on_few_images_is_survived(
    merged: MultiTaskModel, experts: list[SingleTaskModel], count: int
) -> None:
    method = LinearSurgery(rank=None, reads="all", ridge=1e-7)
    aligned = realign(merged, experts, TinyData(count), method, device="cpu")
    assert all(bool(p.isfinite().all()) for p in aligned.aligners.parameters())


@pytest.mark.parametrize("share", [1e3, 1e12])
def test_a_covariance_far_above_the_experts_is_shrunk_to_the_limit(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(4, 40, generator=generator, dtype=torch.float64)  # of rank four
    found = along_directions(share * few.T @ few, torch.eye(40, dtype=torch.float64) * 1e-9, torch.full((40,), 3e-5))
    assert float(torch.linalg.matrix_norm(found @ few.T, 2) / torch.linalg.matrix_norm(few, 2)) == pytest.approx(
        1 / LIMIT, rel=1e-6
    )


def test_without_it_the_aligner_is_what_it_was(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, captured: CalibrationFeatures
) -> None:
    fitted = realign(merged, experts, images, LinearSurgery(rank=4, stretch="none"), captured, "cpu")
    assert not any(isinstance(m, StretchedTap) for m in fitted.aligner("depth").taps)
    assert fitted.aligner("depth").config == {
        "kind": "linear-surgery",
        "tap_channels": list(merged.encoder.tap_channels),
        "prefix_tokens": merged.encoder.prefix_tokens,
        "rank": 4,
    }


@pytest.mark.parametrize("along", ["channels", "directions"])
def test_channels_that_never_vary_and_single_images_stay_finite(
    merged: MultiTaskModel, experts: list[SingleTaskModel], captured: CalibrationFeatures, along: Stretch
) -> None:
    one = TinyData(1)
    model = realign(merged, experts, one, LinearSurgery(rank=4, stretch=along), device="cpu")
    with torch.inference_mode():
        assert all(value.isfinite().all() for value in model(one[0].image[None]).values())
    images = TinyData(6)
    for part in (captured.merged, *captured.experts.values()):
        for patches in part.patches:
            patches[..., 0] = 3.0
    captured.experts["depth"].patches[0][..., 1] = 0.0  # the merge's varies, the expert's does not
    captured.merged.patches[0][..., 2] = 0.0
    stretched, plain_fit = (
        realign(merged, experts, images, LinearSurgery(rank=4, stretch=stretch), captured, "cpu")
        for stretch in (along, "none")
    )
    for task in merged.tasks:
        ours, theirs = (aligned_patches(model, task, captured)[0] for model in (stretched, plain_fit))
        for patches, unstretched in zip(ours, theirs, strict=True):
            assert patches.isfinite().all()
            off, before = ((p[:, 0] - 3.0).abs().max() for p in (patches, unstretched))
            assert off <= before + 1e-5  # a constant channel has nothing to be stretched to
    ours, theirs = (aligned_patches(model, "depth", captured)[0] for model in (stretched, plain_fit))
    if along == "channels":
        assert torch.allclose(ours[0][:, 1], theirs[0][:, 1], atol=1e-5)


@pytest.mark.parametrize("rank", [1, 100])
@pytest.mark.parametrize("along", ["channels", "directions"])
@pytest.mark.parametrize("make", DEGENERATE)
def test_degenerate_features_cost_no_more_than_giving_back_contrast_may(
    make: Callable[[], CalibrationFeatures], along: str, rank: int
) -> None:
    """At most twice the error of least squares: the optimal transport of the best estimate (arXiv 2107.02555)."""
    found = make()
    channels = found.merged.patches[0].shape[-1]
    tap = StretchedTap(fitted(found, "a", min(rank, channels)), channels, along)
    moments, expert = feature_moments(found)[0], found.experts["a"]
    spread = covariance(feature_moments(CalibrationFeatures(expert, {}))[0].patches)
    with torch.no_grad():
        plainly = tap(found.merged.patches[0], found.merged.prefix[0])
        stretch_patches(tap, moments, "a", spread if along == "directions" else None)
        patches, prefix = tap(found.merged.patches[0], found.merged.prefix[0])
    assert torch.isfinite(patches).all()
    assert torch.equal(prefix, plainly[1])
    assert torch.allclose(patches.mean((0, 1)), plainly[0].mean((0, 1)), rtol=1e-4, atol=1e-3)
    unit = error_scale(moments.patches.deviation_y("a"))
    stretched, least_squares, wanted = (
        (p.double() - p.double().mean((0, 1))) / unit for p in (patches, plainly[0], expert.patches[0])
    )
    assert (stretched - wanted).square().sum() <= 2 * (least_squares - wanted).square().sum() + 1e-3
    paler, pale = (
        (p.std((0, 1), correction=0) - wanted.std((0, 1), correction=0)).abs().sum() for p in (stretched, least_squares)
    )
    assert paler <= pale + 1e-3


@pytest.mark.parametrize("stretch", ["channels", "directions"])
def test_it_is_described_folded_and_learned_from_a_stream(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, stretch: Stretch
) -> None:
    method = LinearSurgery(rank=4, stretch=stretch)
    model = realign(merged, experts, images, method, device="cpu")
    unseen = collate([TinyData(3, seed=5)[i] for i in range(3)]).images
    stream = OnlineSurgery(merged, experts, method, every=100, device="cpu")
    stream.update(collate([images[i] for i in range(len(images))]).images)
    again = copy.deepcopy(model)
    for task, aligner in model.aligners.items():
        again.aligners[task] = aligner_from_config(cast(Aligner, aligner).config)
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = model(unseen)
        for same in (again, fold_aligners(model), stream.refresh()):
            found = same(unseen)
            assert all(torch.allclose(found[task], expected[task], atol=1e-4, rtol=1e-4) for task in expected)


@pytest.mark.parametrize(("stretch", "budget"), [("channels", 1500), ("directions", 8000), ("directions", 25_000)])
def test_the_budget_of_auto_holds_it(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    captured: CalibrationFeatures,
    stretch: Stretch,
    budget: int,
) -> None:
    model = realign(merged, experts, images, Auto(budget=budget, stretch=stretch), captured, "cpu")
    used = sum(p.numel() for aligner in model.aligners.values() for p in aligner.parameters())
    assert 0 < used <= budget
    assert model.merge is not None
    assert model.merge.alignment is not None
    assert sum(row["parameters"] for row in model.merge.alignment["chosen"]) == used


@pytest.mark.parametrize("stretch", ["channel", "", 1.0])
def test_an_unknown_stretch_is_refused(stretch: Stretch) -> None:
    for method in (LinearSurgery, Auto):
        with pytest.raises(SimoError, match="stretch is 'none', 'channels' or 'directions'"):
            method(stretch=stretch)


@pytest.mark.parametrize("along", ["direction", "none", ""])
def test_an_aligner_that_is_stretched_along_something_unknown_is_refused(along: str) -> None:
    with pytest.raises(SimoError, match="stretched along 'channels' or 'directions'"):
        Aligner("full-affine", [8, 8], 1, stretched=along)
