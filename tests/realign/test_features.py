"""Capture: every image through the encoder once, and back as what decoders and aligners read."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import CalibrationFeatures, Features, capture, capture_all
from tests.tiny import NAME, TAPS, TinyData, tiny_base


def encoder(**changes: object) -> Encoder:
    return Encoder(tiny_base(**changes).vit, NAME, TAPS)


@pytest.mark.parametrize(
    ("changes", "prefix"), [({}, 1), ({"class_token": False, "global_pool": "avg"}, 0), ({"reg_tokens": 2}, 3)]
)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_features_are_what_the_encoder_gives_in_the_order_of_the_images(
    changes: dict[str, object], prefix: int, batch_size: int
) -> None:
    ours, images = encoder(**changes), TinyData(5)
    found = capture(ours, images, batch_size)
    with torch.inference_mode():
        taps = ours(torch.stack([images[i].image for i in range(5)]))
    assert len(found) == 5
    assert (found.keys, found.grid, found.image_size) == (images.keys, (2, 3), (32, 48))
    assert [p.shape for p in found.patches] == [(5, 6, 48)] * 2
    assert [p.shape for p in found.prefix] == [(5, prefix, 48)] * 2
    again = found.taps(torch.arange(5))
    for a, b in zip((*again.maps, *again.prefix), (*taps.maps, *taps.prefix), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_images_are_read_once_for_all_encoders(
    merged: MultiTaskModel, experts: list[SingleTaskModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, read = TinyData(5), []
    take = TinyData.__getitem__
    monkeypatch.setattr(TinyData, "__getitem__", lambda self, index: (read.append(index), take(self, index))[1])
    found = capture_all(merged, {e.task.name: e for e in experts}, images, batch_size=2)
    assert sorted(read) == list(range(5))
    for encoder, features in zip((merged.encoder, *(e.encoder for e in experts)), found_of(found), strict=True):
        expected = capture(encoder, images, batch_size=2)
        assert (features.keys, features.encoder) == (expected.keys, expected.encoder)
        for ours, theirs in zip(
            (*features.patches, *features.prefix), (*expected.patches, *expected.prefix), strict=True
        ):
            assert torch.equal(ours, theirs)


def found_of(found: CalibrationFeatures) -> list[Features]:
    return [found.merged, *found.experts.values()]


def test_features_of_some_images_are_theirs() -> None:
    found = capture(encoder(), TinyData(5))
    odd = found.subset(slice(1, None, 2))
    assert odd.keys == found.keys[1::2]
    assert torch.equal(odd.taps(torch.tensor([1])).maps[0], found.taps(torch.tensor([3])).maps[0])


def test_images_that_are_no_multiple_of_the_patch_are_padded() -> None:
    found = capture(encoder(), TinyData(2, size=(24, 40)))
    assert (found.grid, found.image_size) == ((2, 3), (24, 40))


def test_half_precision_gives_nearly_the_same_and_is_kept_in_float32() -> None:
    ours, images = encoder(), TinyData(3)
    half, full = capture(ours, images, precision="bfloat16"), capture(ours, images)
    assert half.patches[0].dtype == torch.float32
    assert (half.patches[0] - full.patches[0]).abs().mean() < 0.02 * full.patches[0].abs().mean()


def test_features_can_be_fitted_on() -> None:
    found = capture(encoder(), TinyData(2))
    weight = torch.ones(48, requires_grad=True)
    (found.patches[0] * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_no_images_are_refused() -> None:
    with pytest.raises(SimoError, match=r"tiny \(calibration\) has no calibration images"):
        capture(encoder(), TinyData(0, split="calibration"))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_images_of_different_sizes_are_refused_and_both_sizes_named(batch_size: int) -> None:
    images = TinyData(2)
    images.samples[1] = replace(images.samples[1], image=torch.rand(3, 48, 48))
    with pytest.raises(SimoError, match=r"(?s)32.*48.*48.*48"):
        capture(encoder(), images, batch_size)


def test_features_that_memory_cannot_hold_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, images = encoder(), TinyData(5)
    needed = 4 * 5 * (6 + 1) * 2 * 48  # bytes; 2 x 3 patches, a class token, two taps of 48 channels
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": needed}[name])
    assert len(capture(ours, images)) == 5
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": needed - 1}[name])
    monkeypatch.setattr(Encoder, "forward", lambda self, images: pytest.fail("it ran"))
    with pytest.raises(SimoError, match=r"5 images from 1 encoder take 1\.34e-05 GB of memory.*--capture-dir"):
        capture(ours, images)


def test_broken_features_are_refused_and_their_block_named() -> None:
    ours = encoder()
    ours.get_parameter("vit.blocks.2.mlp.fc1.bias").data[0] = torch.nan
    with pytest.raises(SimoError, match=f"features: depth: what {NAME} gives at block 3 holds NaN"):
        capture(ours, TinyData(2), label="features: depth")


def test_capturing_for_re_alignment_runs_the_merged_encoder_and_every_expert(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    by_task = {e.task.name: e for e in experts}
    found = capture_all(merged, by_task, images)
    assert torch.equal(found.merged.patches[1], capture(merged.encoder, images).patches[1])
    for name, expert in by_task.items():
        assert torch.equal(found.experts[name].patches[1], capture(expert.encoder, images).patches[1])


def test_a_task_without_its_expert_is_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    with pytest.raises(SimoError, match="no expert for depth"):
        capture_all(merged, {"segmentation": experts[0]}, images)
