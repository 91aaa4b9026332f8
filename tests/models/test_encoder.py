"""The encoder: it reads the right blocks, of images of any size, and says what it cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models import Encoder
from simo_merge.weights.architecture import create_vit
from tests.tiny import NAME

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}
PREFIX_TOKENS = {  # one name of each family, and how many prefix tokens it has
    "vit_tiny_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "deit3_small_patch16_224": 1,
    "eva02_tiny_patch14_224": 1,
    "vit_small_patch16_dinov3": 5,
    "vit_base_patch16_siglip_gap_224": 0,
    "vit_base_patch16_reg4_gap_256": 4,
}


def encoder(name: str = NAME, taps: tuple[int, ...] | None = None, depth: int = 4, **more: Any) -> Encoder:
    return Encoder(create_vit(name, more.pop("image_size", None), **{**SMALL, "depth": depth, **more}), name, taps)


class Recorder:
    """What a module was given and what it returned, at every call."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        module.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(inputs[0])
        self.outputs.append(output)


# -- taps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIX_TOKENS)
def test_taps_are_the_outputs_of_the_blocks_split_into_patches_and_prefix_tokens(name: str) -> None:
    model = encoder(name, taps=(1, 3))
    blocks = [Recorder(model.vit.blocks[tap]) for tap in (1, 3)]
    with torch.inference_mode():
        taps = model(torch.rand(2, 3, 56, 80))
    height, width = (side // model.patch_size[0] + (side % model.patch_size[0] > 0) for side in (56, 80))
    count = PREFIX_TOKENS[name]
    assert model.prefix_tokens == count
    assert len(taps.maps) == len(taps.prefix) == 2
    for tap_map, prefix, block in zip(taps.maps, taps.prefix, blocks, strict=True):
        tokens = block.outputs[0]  # (B, P + h*w, C)
        assert torch.equal(prefix, tokens[:, :count])
        assert tap_map.shape == (2, 48, height, width)
        for row in range(height):
            for column in range(width):
                assert torch.equal(tap_map[:, :, row, column], tokens[:, count + row * width + column])


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (6, (0, 2, 3, 5)), (2, (0, 1)), (1, (0,))],
)
def test_the_default_is_four_taps_evenly_spaced_up_to_the_last_block(depth: int, expected: tuple[int, ...]) -> None:
    assert encoder(depth=depth, embed_dim=6).taps == expected


def test_negative_taps_count_from_the_end() -> None:
    assert encoder(taps=(0, -3, -1)).taps == (0, 1, 3)


@pytest.mark.parametrize("taps", [(4,), (-5,), (0, 9), ()])
def test_taps_out_of_range_are_refused_with_the_range(taps: tuple[int, ...]) -> None:
    with pytest.raises(SimoError, match=rf"out of range: {NAME} has blocks 0 to 3"):
        encoder(taps=taps)


@pytest.mark.parametrize("taps", [(1, 1), (3, -1), (2, 1)])
def test_taps_must_rise(taps: tuple[int, ...]) -> None:
    with pytest.raises(SimoError, match="must rise and differ"):
        encoder(taps=taps)


def test_blocks_after_the_last_tap_are_not_run() -> None:
    model = encoder(taps=(0, 1))
    skipped = Recorder(model.vit.blocks[2])
    with torch.inference_mode():
        model(torch.rand(1, 3, 32, 32))
    assert not skipped.inputs


def test_it_says_how_many_channels_each_tap_has() -> None:
    model = encoder(taps=(0, 2, 3))
    assert model.tap_channels == (48, 48, 48)
    assert model.depth == 4


# -- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        (NAME, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vit_small_patch14_reg4_dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_images_are_normalised_as_the_weights_were_trained(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = encoder(name)
    seen = Recorder(model.vit.patch_embed)
    images = torch.rand(1, 3, 112, 112)
    with torch.inference_mode():
        model(images)
    by_hand = np.stack([(images[0, c].numpy() - mean[c]) / std[c] for c in range(3)])
    np.testing.assert_allclose(seen.inputs[0][0].numpy(), by_hand, rtol=1e-5, atol=1e-6)


def test_border_pixels_are_repeated_up_to_whole_patches() -> None:
    model = encoder()
    images = torch.rand(1, 3, 30, 45)  # to 32 x 48: one row on each side, one column left and two right
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 2)), mode="edge")
    with torch.inference_mode():
        ours, by_hand = model(images), model(torch.from_numpy(padded))
    assert torch.equal(ours.maps[-1], by_hand.maps[-1])
    assert torch.equal(ours.prefix[-1], by_hand.prefix[-1])


@given(height=st.integers(1, 60), width=st.integers(1, 60))
def test_cropping_takes_off_exactly_what_padding_added(height: int, width: int) -> None:
    model = PATCH_14
    pad = model.padding(height, width)
    image = torch.arange(height * width).view(1, 1, height, width).float()
    padded = nn.functional.pad(image, tuple(pad), value=-1.0)
    assert model.padded_size(height, width) == tuple(padded.shape[-2:])
    assert all(side % 14 == 0 for side in padded.shape[-2:])
    assert pad.right - pad.left in (0, 1)
    assert pad.bottom - pad.top in (0, 1)
    assert torch.equal(model.crop(padded, height, width), image)


PATCH_14 = encoder("vit_small_patch14_reg4_dinov2", depth=1, embed_dim=6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 1, 32, 32), (1, 1, 3, 32, 32)])
def test_only_batches_of_rgb_images_are_read(shape: tuple[int, ...]) -> None:
    with pytest.raises(SimoError, match=r"expected images of shape \(B, 3, H, W\)"):
        encoder()(torch.rand(shape))


def test_images_of_bytes_are_refused_because_they_are_not_in_0_to_1() -> None:
    with pytest.raises(SimoError, match=r"torch\.uint8.*divide 8-bit images by 255"):
        encoder()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# -- encoders of one size ---------------------------------------------------------------------------------------


def test_most_encoders_read_any_size_and_remember_the_grid_they_were_built_with() -> None:
    model = encoder(image_size=(64, 96))
    assert model.image_size is None
    assert model.grid_size == (64, 96)


def test_beit_names_the_size_that_it_takes_and_the_one_to_build_it_with() -> None:
    model = encoder("beit_base_patch16_224", image_size=(32, 48))
    assert model.image_size == (32, 48)
    with pytest.raises(SimoError, match=r"fixed image size of 32x48 .* got 60x64; .* image_size=\(64, 64\)"):
        model(torch.rand(1, 3, 60, 64))


def test_beit_reads_images_that_padding_brings_to_its_size() -> None:
    model = encoder("beit_base_patch16_224", image_size=(32, 48), depth=2)
    with torch.inference_mode():
        taps = model(torch.rand(1, 3, 30, 41))
    assert taps.maps[0].shape == (1, 48, 2, 3)
    assert taps.prefix[0].shape == (1, 1, 48)
