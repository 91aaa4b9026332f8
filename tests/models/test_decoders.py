"""Decoders: the linear head against a plain version, DPT against smp's own, and options that do not fit."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models import (
    DPTDecoder,
    Encoder,
    LinearDecoder,
    RunningNorm2d,
    Taps,
    build_decoder,
    decoder_from_config,
)
from tests.tiny import tiny_base

LIGHT: dict[str, Any] = {"intermediate_channels": (4, 6, 8, 10), "fusion_channels": 4}


def random_taps(count: int, channels: int, height: int, width: int, prefix: int = 1, batch: int = 2) -> Taps:
    return Taps(
        tuple(torch.randn(batch, channels, height, width) for _ in range(count)),
        tuple(torch.randn(batch, prefix, channels) for _ in range(count)),
    )


def used(decoder: nn.Module) -> nn.Module:
    """With batch statistics and weights as after training, so that nothing is 0 or 1 by chance."""
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.2)
                module.bias.normal_()
    return decoder.eval()


# -- the linear head --------------------------------------------------------------------------------------------


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, h, w) -> (K, H, W), pixel centres at half steps, borders repeated."""
    out = np.zeros((values.shape[0], *size))
    for y in range(size[0]):
        for x in range(size[1]):
            v = max((y + 0.5) * values.shape[1] / size[0] - 0.5, 0)
            u = max((x + 0.5) * values.shape[2] / size[1] - 0.5, 0)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, values.shape[1] - 1), min(left + 1, values.shape[2] - 1)
            upper = values[:, top, left] * (1 - u + left) + values[:, top, right] * (u - left)
            lower = values[:, bottom, left] * (1 - u + left) + values[:, bottom, right] * (u - left)
            out[:, y, x] = upper * (1 - v + top) + lower * (v - top)
    return out


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_linear_head_is_batch_norm_and_a_matrix_on_maps_beside_their_class_tokens(prefix: int) -> None:
    taps = random_taps(2, 3, 2, 4, prefix)
    decoder = used(LinearDecoder((3, 3), prefix, 5))
    norm, project = decoder.norm, decoder.project
    with torch.inference_mode():
        ours = decoder(taps, (5, 9)).numpy()
    for image in range(2):
        raw = np.zeros((5, 2, 4))
        for y in range(2):
            for x in range(4):
                parts = []
                for tap_map, tokens in zip(taps.maps, taps.prefix, strict=True):
                    parts.append(tap_map[image, :, y, x])
                    if prefix:
                        parts.append(tokens[image, 0])
                vector = torch.cat(parts).double()
                vector = (vector - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
                vector = vector * norm.weight + norm.bias
                raw[:, y, x] = (project.weight[:, :, 0, 0].double() @ vector + project.bias).detach().numpy()
        np.testing.assert_allclose(ours[image], bilinear(raw, (5, 9)), rtol=1e-4, atol=1e-5)


# -- DPT --------------------------------------------------------------------------------------------------------


def smp_parts(readout: str = "cat", depth: int = 4) -> smp.DPT:
    torch.manual_seed(1)
    return used(
        smp.DPT(
            "tu-test_vit",
            encoder_depth=depth,
            encoder_weights=None,
            classes=3,
            decoder_readout=readout,
            decoder_intermediate_channels=LIGHT["intermediate_channels"][:depth],
            decoder_fusion_channels=LIGHT["fusion_channels"],
            dynamic_img_size=True,
        )
    )


def ours_from(model: smp.DPT, readout: str = "cat", depth: int = 4) -> DPTDecoder:
    decoder = DPTDecoder((64,) * depth, 1, 3, LIGHT["intermediate_channels"][:depth], LIGHT["fusion_channels"], readout)
    decoder.decoder.load_state_dict(model.decoder.state_dict())
    decoder.head.load_state_dict(model.segmentation_head.state_dict())
    return decoder.eval()


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
@pytest.mark.parametrize(("depth", "height", "width"), [(4, 4, 6), (3, 3, 5), (2, 2, 3), (1, 1, 2)])
def test_dpt_is_smps_to_the_letter_for_patch_16_and_maps_that_fit(
    readout: str, depth: int, height: int, width: int
) -> None:
    model = smp_parts(readout, depth)
    taps = random_taps(depth, 64, height, width)
    with torch.inference_mode():
        theirs = model.segmentation_head(model.decoder(list(taps.maps), list(taps.prefix)))
        ours = ours_from(model, readout, depth)(taps, (16 * height, 16 * width))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prefix_tokens", [0, 1, 4])
def test_with_tap_norm_training_sees_no_scale_or_shift_of_a_taps_channel(prefix_tokens: int) -> None:
    torch.manual_seed(0)
    decoder = DPTDecoder((8,) * 4, prefix_tokens, 2, **LIGHT, tap_norm=True).train()
    decoder.head.head[3].p = 0.0  # dropout would differ from run to run
    taps = random_taps(4, 8, 2, 3, prefix_tokens)
    scale, shift = torch.rand(8) * 100 + 1, torch.randn(8) * 100
    maps = [m * scale[:, None, None] + shift[:, None, None] for m in taps.maps]
    moved = Taps(maps, [prefix * scale + shift for prefix in taps.prefix])
    before = copy.deepcopy(decoder)
    assert torch.allclose(decoder(taps, (28, 42)), before(moved, (28, 42)), atol=1e-3)
    plain = DPTDecoder((8,) * 4, prefix_tokens, 2, **LIGHT).eval()
    assert not torch.allclose(plain(taps, (28, 42)), plain(moved, (28, 42)), atol=1e-3)


def test_the_norm_of_the_taps_takes_nothing_from_an_image_once_it_has_seen_others() -> None:
    norm = RunningNorm2d(3).train()
    batches = [torch.randn(4, 3, 5, 5) * scale + scale for scale in (1.0, 2.0, 3.0)]
    for batch in batches:
        found = norm(batch)
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variance = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    by_hand = (batches[-1] - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert torch.allclose(norm.eval()(batches[-1]), by_hand, atol=1e-5)


def test_with_tap_norm_the_residual_branches_begin_at_zero() -> None:
    decoder = DPTDecoder((8,) * 4, 1, 2, **LIGHT, tap_norm=True).train()
    feature = torch.randn(2, 4, 6, 6)
    for fusion in decoder.decoder.fusion_blocks:
        assert torch.equal(fusion.residual_conv_block1(feature), feature)
        assert torch.equal(fusion.residual_conv_block2(feature), feature)


def test_odd_maps_are_repeated_at_their_border_to_fit_the_pyramid_and_cut_off_again() -> None:
    model = smp_parts()
    taps = random_taps(4, 64, 3, 5)
    padded = [torch.from_numpy(np.pad(m.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")) for m in taps.maps]
    with torch.inference_mode():
        raw = model.segmentation_head.head(model.decoder(padded, list(taps.prefix)))[..., : 3 * 8, : 5 * 8]
        by_hand = F.interpolate(raw, size=(42, 70), mode="bilinear", align_corners=True)
        assert torch.equal(ours_from(model)(taps, (42, 70)), by_hand)


@pytest.mark.parametrize("size", [(14, 14), (28, 70), (30, 45), (126, 168), (1, 1)])
@pytest.mark.parametrize("kind", ["dpt", "linear"])
def test_predictions_have_the_size_that_was_asked_for(size: tuple[int, int], kind: str) -> None:
    options = LIGHT if kind == "dpt" else {}
    decoder = decoder_from_config(
        {"kind": kind, "tap_channels": [8] * 4, "prefix_tokens": 1, "out_channels": 3} | options
    )
    height, width = (math.ceil(side / 14) for side in size)
    prediction = decoder.eval()(random_taps(4, 8, height, width), size)
    assert prediction.shape == (2, 3, *size)
    assert torch.isfinite(prediction).all()


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_dpt_works_on_encoders_without_prefix_tokens(readout: str) -> None:
    decoder = DPTDecoder((8,) * 4, 0, 2, **LIGHT, readout=readout).eval()
    assert decoder(random_taps(4, 8, 2, 3, prefix=0), (32, 48)).shape == (2, 2, 32, 48)


@pytest.mark.parametrize("kind", ["dpt", "linear"])
def test_the_memory_layout_of_the_maps_does_not_matter(kind: str) -> None:
    config = {"kind": kind, "tap_channels": [8] * 4, "prefix_tokens": 1, "out_channels": 3}
    decoder = used(decoder_from_config(config | (LIGHT if kind == "dpt" else {})))
    taps = random_taps(4, 8, 4, 4)
    other = Taps(tuple(m.to(memory_format=torch.channels_last) for m in taps.maps), taps.prefix)
    with torch.inference_mode():
        torch.testing.assert_close(decoder(other, (64, 64)), decoder(taps, (64, 64)))


@pytest.mark.parametrize("kind", ["dpt", "linear"])
def test_every_parameter_learns_and_predictions_stay_float32_under_autocast(kind: str) -> None:
    config = {"kind": kind, "tap_channels": [8] * 4, "prefix_tokens": 1, "out_channels": 3}
    decoder = used(decoder_from_config(config | (LIGHT if kind == "dpt" else {}))).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = decoder(random_taps(4, 8, 3, 4), (42, 56))
    assert prediction.dtype == torch.float32
    prediction.square().sum().backward()
    idle = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()}
    # smp's deepest fusion block has a branch for a map from below that never comes: all its blocks are used.
    assert not idle


# -- options ----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(tiny_base().vit, "tiny")


@pytest.mark.parametrize(("kind", "options"), [("linear", {}), ("dpt", LIGHT), ("dpt", {**LIGHT, "readout": "add"})])
def test_a_decoder_can_be_built_again_from_its_config_as_json(
    encoder: Encoder, kind: str, options: dict[str, Any]
) -> None:
    first = used(build_decoder(kind, encoder, 3, **options))
    again = decoder_from_config(json.loads(json.dumps(first.config)))
    again.load_state_dict(first.state_dict())
    taps = random_taps(4, 48, 2, 3)
    with torch.inference_mode():
        assert torch.equal(again.eval()(taps, (32, 48)), first(taps, (32, 48)))
    assert again.config == first.config


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {}, "unknown decoder 'mlp'; known: dpt, linear"),
        ("linear", {"depth": 3}, "options of decoder 'linear' do not fit.*depth"),
        ("dpt", {"fusion_chanels": 8}, "options of decoder 'dpt' do not fit.*fusion_chanels"),
        ("dpt", {"readout": "sum"}, "options of decoder 'dpt' do not fit.*sum"),
        ("dpt", {"intermediate_channels": (8, 8)}, "2 intermediate_channels for 4 taps"),
        ("dpt", {"strides": (16, 16)}, "options of decoder 'dpt' do not fit.*same length"),
        ("dpt", {"strides": (14,) * 4}, r"strides .* are \[14, 14, 14, 14\]; .* powers of two"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    encoder: Encoder, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SimoError, match=message):
        build_decoder(kind, encoder, 3, **options)


def test_a_wrong_number_of_taps_is_no_silent_loss(encoder: Encoder) -> None:
    taps: tuple[Tensor, ...] = random_taps(3, 48, 2, 3).maps
    with pytest.raises(ValueError, match="zip"):
        build_decoder("linear", encoder, 3)(Taps(taps, random_taps(4, 48, 2, 3).prefix), (32, 48))
