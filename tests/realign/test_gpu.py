"""On a GPU every label-free fit gives the features that it gives on the CPU, and models come back where they were."""

from __future__ import annotations

import pytest
import torch

from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import (
    Auto,
    EncoderCalibration,
    EncoderDistillation,
    FullAffine,
    LinearSurgery,
    Magnitude,
    NormRecalibration,
    Procrustes,
    Realignment,
    Spatial,
    SurgeryV2,
    TaskNorms,
    TokenLinear,
    capture_all,
    realign,
)
from tests.tiny import TinyData

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS: list[Realignment] = [
    LinearSurgery(rank=4),
    LinearSurgery(rank=4, objective="decoder"),
    LinearSurgery(rank=None, reads="all", stretch="channels"),
    LinearSurgery(rank="auto", ridge="auto", reads="auto"),
    Auto(budget=None),
    FullAffine(),
    TokenLinear(rank=4),
    Spatial(rank=4, directions=2),
    Procrustes(),
    Magnitude(),
    NormRecalibration(),
    EncoderCalibration(),
    EncoderDistillation(steps=2, precision="float32", augment=None),
    SurgeryV2(rank=4),
    TaskNorms(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_fit_on_the_gpu_is_that_on_the_cpu(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    ours, theirs = (realign(merged, experts, images, method, features, device) for device in ("cuda", "cpu"))
    batch = torch.stack([images[i].image for i in range(len(images))])
    with torch.inference_mode():
        found, expected = ours(batch), theirs(batch)
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_models_on_the_gpu_stay_there(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, stream: bool
) -> None:
    expected = realign(merged, experts, images, LinearSurgery(rank=4), device="cpu")
    aligned = realign(merged.cuda(), [e.cuda() for e in experts], images, LinearSurgery(rank=4), stream=stream)
    assert all(p.is_cuda for model in (merged, *experts) for p in model.parameters())
    batch = torch.stack([images[i].image for i in range(len(images))])
    with torch.inference_mode():
        found, wanted = aligned(batch), expected(batch)
    for task, values in wanted.items():
        torch.testing.assert_close(found[task], values, rtol=1e-3, atol=1e-3)
