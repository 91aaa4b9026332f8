"""Per-task normalization recalibration: moments matched at the taps, and batch norms estimated anew."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.merging import WeightAverage, merge
from simo_merge.models import DPTDecoder, LinearDecoder, MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import AffineTap
from simo_merge.realign import BatchNormRecalibration, CalibrationFeatures, capture, realign
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.recalibration import fit_affine, reestimate_batch_norm
from tests.tiny import (
    DEPTH,
    NORMALS,
    LastTapDecoder,
    TinyData,
    Unreadable,
    features,
    related_features,
    tiny_base,
    tiny_expert,
)

# -- moments at the taps ----------------------------------------------------------------------------------------


def recalibrated(found: CalibrationFeatures, task: str) -> tuple[Tensor, Tensor]:
    merged = found.merged
    tap = AffineTap(merged.patches[0].shape[-1], merged.prefix[0].shape[1])
    fit_affine(feature_moments(found)[0], task, tap)
    with torch.no_grad():
        return tap(merged.patches[0], merged.prefix[0])  # type: ignore[no-any-return]


def assert_same_moments(found: Tensor, expected: Tensor, over: tuple[int, ...]) -> None:
    scale = expected.double().std(over, correction=0) + 1e-3
    for statistic in (
        lambda t: t.double().mean(over),
        lambda t: t.double().std(over, correction=0),
    ):
        assert ((statistic(found) - statistic(expected)) / scale).abs().max() < 1e-4


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_mean_and_deviation_of_each_channel_become_the_experts(prefix: int) -> None:
    found = related_features(prefix=prefix)
    for task, expert in found.experts.items():
        patches, tokens = recalibrated(found, task)
        assert_same_moments(patches, expert.patches[0], (0, 1))
        for i in range(prefix):
            assert_same_moments(tokens[:, i], expert.prefix[0][:, i], (0,))


def test_huge_channels_are_matched_as_well_as_any() -> None:
    found = related_features()
    found.merged.patches[0][..., 2] *= 1e4
    found.experts["a"].patches[0][..., 3] *= 1e4
    assert_same_moments(recalibrated(found, "a")[0], found.experts["a"].patches[0], (0, 1))


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_a_channel_that_never_varies_gets_the_experts_mean_and_no_scale(value: float) -> None:
    found = related_features()
    found.merged.patches[0][..., 2] = value
    patches, _ = recalibrated(found, "a")
    assert torch.allclose(patches[..., 2], found.experts["a"].patches[0][..., 2].mean(), atol=1e-3)
    assert_same_moments(patches[..., 3:], found.experts["a"].patches[0][..., 3:], (0, 1))


def test_a_channel_that_is_constant_in_the_expert_becomes_that_constant() -> None:
    found = related_features()
    found.experts["a"].patches[0][..., 2] = 77.7
    patches, _ = recalibrated(found, "a")
    assert torch.allclose(patches[..., 2], torch.tensor(77.7), atol=1e-3)


def test_one_image_shifts_its_prefix_tokens_onto_the_experts() -> None:
    found = related_features(count=1)
    _, tokens = recalibrated(found, "a")
    assert torch.allclose(tokens, found.experts["a"].prefix[0], atol=1e-5)


# -- batch norms of the decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 16, 17])
@pytest.mark.parametrize("prefix", [0, 1])
def test_the_statistics_of_a_linear_decoder_are_mean_and_variance_over_all_images(count: int, prefix: int) -> None:
    taps = [related_features(count=count, prefix=prefix).merged for _ in range(2)]
    both = replace(taps[0], patches=tuple(t.patches[0] for t in taps), prefix=tuple(t.prefix[0] for t in taps))
    decoder = LinearDecoder((8, 8), prefix, out_channels=2)
    decoder.norm.running_mean.fill_(99.0)  # type: ignore[union-attr]
    channels = 32 if prefix else 16
    assert reestimate_batch_norm(decoder, both) == 2 * channels
    parts = []
    for tap in taps:
        parts.append(tap.patches[0])
        if prefix:
            parts.append(tap.prefix[0][:, :1].expand_as(tap.patches[0]))
    read = torch.cat(parts, dim=-1).flatten(0, 1).double()
    assert torch.allclose(decoder.norm.running_mean.double(), read.mean(0), atol=1e-5)  # type: ignore[union-attr]
    assert torch.allclose(decoder.norm.running_var.double(), read.var(0), rtol=1e-4)  # type: ignore[union-attr]
    assert not decoder.norm.training


def test_learned_parameters_stay_as_they_are() -> None:
    decoder = DPTDecoder((8,) * 4, 1, 2, intermediate_channels=(4,) * 4, fusion_channels=4)
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    one = features(torch.randn(5, 8, 8), torch.randn(5, 1, 8), grid=(2, 4))
    found = replace(one, patches=one.patches * 4, prefix=one.prefix * 4)
    assert reestimate_batch_norm(decoder, found) > 0
    assert all(torch.equal(before[name], p) for name, p in decoder.named_parameters())
    assert all(torch.isfinite(b).all() for b in decoder.buffers())
    assert not any(module.training for module in decoder.modules())


def test_scale_and_shift_of_the_taps_are_undone_in_a_dpt_whatever_its_norms_had_seen_before() -> None:
    torch.manual_seed(0)
    one = features(torch.randn(9, 8, 8), torch.randn(9, 1, 8), grid=(2, 4))
    one = replace(one, patches=one.patches * 4, prefix=one.prefix * 4)
    scale, shift = torch.rand(8) * 9 + 1, torch.randn(8) * 9
    moved = replace(
        one, patches=tuple(p * scale + shift for p in one.patches), prefix=tuple(p * scale + shift for p in one.prefix)
    )
    decoder = DPTDecoder((8,) * 4, 1, 2, intermediate_channels=(4,) * 4, fusion_channels=4, tap_norm=True)
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    decoder.train()(one.taps(torch.arange(9)), (28, 56))  # what training leaves in the running statistics
    outputs = []
    for seen in (one, moved):
        fitted = copy.deepcopy(decoder)
        reestimate_batch_norm(fitted, seen, batch_size=4)
        outputs.append(fitted(seen.taps(torch.arange(9)), (28, 56)))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_the_hooks_are_gone_when_it_is_done() -> None:
    decoder = LinearDecoder((8,), 0, out_channels=2)
    reestimate_batch_norm(decoder, related_features(prefix=0).merged)
    assert not decoder.norm._forward_pre_hooks


def test_the_models_decoders_read_normalised_features_afterwards(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(merged, experts, images, BatchNormRecalibration())
    found = capture(merged.encoder, images)
    expected = torch.cat(found.patches, dim=-1).flatten(0, 1).double()
    for name in merged.tasks:
        mean = aligned.decoders[name].get_buffer("norm.running_mean").double()
        per_tap = [mean[:48], mean[96:144]]  # patches, class token, patches, class token
        assert torch.allclose(torch.cat(per_tap), expected.mean(0), atol=1e-5)


def test_a_decoder_without_batch_norm_is_refused_and_its_task_named() -> None:
    base = tiny_base()
    experts = [tiny_expert(DEPTH, base, 1), tiny_expert(NORMALS, base, 2)]
    experts[1].decoder = LastTapDecoder(48, 3)
    merged = merge(experts, WeightAverage(), base)
    images = Unreadable(4)  # it is told before any image is run
    with pytest.raises(SimoError, match="decoder of normals has no batch norm"):
        realign(merged, experts, images, BatchNormRecalibration())
