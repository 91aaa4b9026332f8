"""Surgery by gradient: it starts as the identity or at the closed form, and goes down from there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import SurgeryTap
from simo_merge.realign import CalibrationFeatures, LinearSurgery, Surgery, realign
from simo_merge.realign.closed_form import reduced_rank_ridge, start_surgery
from simo_merge.realign.gradient import fit_tap
from simo_merge.realign.methods import feature_moments
from tests.tiny import TinyData, related_features, state_of

RIDGE = 0.01


def tokens(found: CalibrationFeatures, task: str | None = None) -> Tensor:
    """All tokens, (N, h*w + P, C)."""
    part = found.merged if task is None else found.experts[task]
    return torch.cat([part.patches[0], part.prefix[0]], dim=1)


def with_large_mean(channels: int = 8, prefix: int = 1) -> CalibrationFeatures:
    """Features as a ViT has them: the same large mean in every token."""
    found = related_features(count=20, channels=channels, prefix=prefix)
    mean = 20 * torch.randn(channels)
    for part in (found.merged, *found.experts.values()):
        part.patches[0].add_(mean)
        part.prefix[0].add_(mean)
    return found


def started(found: CalibrationFeatures, rank: int) -> SurgeryTap:
    tap = SurgeryTap(found.merged.patches[0].shape[-1], found.merged.prefix[0].shape[1], rank)
    start_surgery(feature_moments(found)[0], "a", tap, RIDGE)
    return tap


def losses(tap: SurgeryTap, found: CalibrationFeatures, steps: int, seed: int = 0, lr: float = 1e-2) -> list[float]:
    merged, expert = found.merged, found.experts["a"]
    return fit_tap(
        tap, merged.patches[0], merged.prefix[0], expert.patches[0], expert.prefix[0], steps, lr, 20, seed, "trial"
    )


def distance(found: CalibrationFeatures, aligned: Tensor | None = None) -> float:
    return float(((tokens(found) if aligned is None else aligned) - tokens(found, "a")).abs().mean())


def test_a_fresh_module_is_the_identity() -> None:
    found = related_features()
    tap = SurgeryTap(8, 2, rank=3)
    patches, prefix = tap(found.merged.patches[0], found.merged.prefix[0])
    assert torch.equal(patches, found.merged.patches[0])
    assert torch.equal(prefix, found.merged.prefix[0])


def test_the_first_loss_of_a_fresh_module_is_the_mean_absolute_difference_of_all_tokens() -> None:
    found = related_features(count=20)
    assert losses(SurgeryTap(8, 2, rank=3), found, steps=1)[0] == pytest.approx(distance(found), rel=1e-5)


@pytest.mark.parametrize("prefix", [0, 2])
def test_the_gradient_fit_reduces_the_distance(prefix: int) -> None:
    found = related_features(count=20, prefix=prefix)
    history = losses(SurgeryTap(8, prefix, rank=6), found, steps=80)
    assert history[-1] < 0.8 * history[0]


def test_a_batch_larger_than_the_set_takes_images_more_than_once() -> None:
    found = related_features(count=3)
    assert len(losses(SurgeryTap(8, 2, rank=3), found, steps=4)) == 4


def test_the_start_equals_its_linear_map_wherever_the_units_are_open() -> None:
    found = with_large_mean()
    tap = started(found, rank=4)
    x, y = tokens(found).flatten(0, 1).double(), tokens(found, "a").flatten(0, 1).double()
    deviation = found.experts["a"].patches[0].double().std((0, 1), correction=0)
    grid = found.merged.patches[0].shape[1]  # a prefix token counts for all patches of its image
    counts = torch.tensor([*[1.0] * grid, *[grid] * found.merged.prefix[0].shape[1]]).repeat(len(found.merged)).double()
    weighted = x.T * counts
    truth = reduced_rank_ridge(weighted @ x, weighted @ (y - x), deviation, 3, RIDGE)
    with torch.no_grad():
        opened = (tap.down(x.float()) > 0).all(dim=1)
        aligned, _ = tap(x.float()[None], x.float()[None, :0])
    assert opened.double().mean() > 0.98
    assert torch.allclose(aligned[0][opened].double(), (x + x @ truth.down.T @ truth.up.T)[opened], atol=5e-3)


@pytest.mark.parametrize("rank", [2, 4, 9])
@pytest.mark.parametrize("large_mean", [True, False])
def test_the_start_is_not_further_from_the_expert_than_the_identity(rank: int, large_mean: bool) -> None:
    found = with_large_mean() if large_mean else related_features(count=20)
    assert losses(started(found, rank), found, steps=1)[0] <= distance(found)


def test_the_gradient_goes_on_down_from_the_closed_form() -> None:
    found = with_large_mean()
    history = losses(started(found, rank=4), found, steps=60, lr=1e-3)
    assert min(history[-5:]) < history[0]


def test_a_rank_above_the_channels_leaves_the_units_that_the_start_has_no_use_for() -> None:
    found = with_large_mean()
    torch.manual_seed(3)
    fresh = SurgeryTap(8, 1, rank=12)
    torch.manual_seed(3)
    tap = started(found, rank=12)
    assert torch.equal(tap.down.weight[9:], fresh.down.weight[9:])
    assert not tap.up.weight[:, 9:].any()
    assert losses(tap, found, steps=1)[0] <= distance(found)


def test_features_that_never_vary_start_finite() -> None:
    found = related_features()
    found.merged.patches[0][:] = 0
    found.merged.prefix[0][:] = 0
    found.experts["a"].patches[0][:] = 0.3
    tap = started(found, rank=4)
    assert all(torch.isfinite(p).all() for p in tap.parameters())
    assert torch.isfinite(torch.tensor(losses(tap, found, steps=3))).all()


@pytest.mark.parametrize("start", ["zero", "closed-form"])
def test_the_fit_is_determined_by_the_seed(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, start: str
) -> None:
    method = Surgery(rank=4, steps=5, batch_size=2, start=start)
    first, again, other = (realign(merged, experts, images, method, seed=seed) for seed in (0, 0, 1))
    assert state_of(first) == state_of(again)
    assert state_of(first) != state_of(other)


def test_no_steps_from_zero_leave_every_prediction_as_it_was(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(merged, experts, images, Surgery(rank=4, steps=0))
    pictures = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        before, after = merged(pictures), aligned(pictures)
    assert all(torch.equal(before[task], after[task]) for task in merged.tasks)


@pytest.mark.parametrize("method", [LinearSurgery(rank=48), Surgery(rank=8, steps=40, lr=1e-2)])
def test_surgery_brings_the_features_of_a_real_encoder_closer_to_the_experts(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: LinearSurgery | Surgery
) -> None:
    aligned = realign(merged, experts, images, method)
    pictures = torch.stack([images[i].image for i in range(len(images))])
    with torch.inference_mode():
        before = merged.encoder(pictures)
        for expert in experts:
            wanted = expert.encoder(pictures)
            aligner = aligned.aligner(expert.task.name)
            assert aligner is not None
            after = aligner(before)
            for x, found, y in zip(before.maps, after.maps, wanted.maps, strict=True):
                assert (found - y).abs().mean() < 0.9 * (x - y).abs().mean()


@pytest.mark.parametrize(("start", "rate"), [("zero", 1e-3), ("closed-form", 3e-3)])
def test_the_learning_rate_depends_on_the_start_and_is_recorded(start: str, rate: float) -> None:
    assert Surgery(start=start).parameters()["lr"] == rate
    assert Surgery(start=start, lr=0.5).parameters()["lr"] == 0.5
