"""One encoder under several namings, and on other grids, gives the same outputs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.weights import fingerprint, load_base
from simo_merge.weights.architecture import create_vit
from simo_merge.weights.files import read_tensors
from simo_merge.weights.layouts import to_timm
from simo_merge.weights.loading import load_into
from tests.weights.models import SMALL, TINY, dinov2, facebook, inside, randomised, taps, transformers


@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", ["timm", "facebook", "chunked", "smp", "ours", "training", "transformers"])
def test_every_layout_gives_the_same_outputs(layout: str, suffix: str, registers: bool, tmp_path: Path) -> None:
    source, target = (
        dinov2(registers),
        create_vit("vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2", (70, 70), **SMALL),
    )
    tensors = {
        "timm": lambda: source.state_dict(),
        "facebook": lambda: facebook(source),
        "chunked": lambda: facebook(source, chunks=1),
        "smp": lambda: inside(source.state_dict(), "encoder.model."),
        "ours": lambda: inside(source.state_dict(), "encoder.vit."),
        "training": lambda: inside(facebook(source, chunks=2), "backbone."),
        "transformers": lambda: transformers(source),
    }[layout]()
    path = tmp_path / f"anything{suffix}"
    if suffix == ".pth":
        torch.save({"teacher": tensors, "epoch": 3} if layout == "training" else tensors, path)
    else:
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)

    load_into(target, to_timm(read_tensors(path), path.name), path.name)

    for (got, got_prefix), (want, want_prefix) in zip(taps(target, 42, 56), taps(source, 42, 56), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got_prefix, want_prefix, rtol=1e-5, atol=1e-6)


def test_an_smp_model_is_read_as_smp_saves_it(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp  # after simo_merge, which lets torchvision be imported

    model = smp.DPT("tu-test_vit", encoder_weights=None)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    base = load_base(TINY, tmp_path / "model.safetensors")
    encoder = model.state_dict()
    assert all(torch.equal(value, encoder[f"encoder.model.{name}"]) for name, value in base.vit.state_dict().items())


def test_original_swiglu_weights_find_their_place() -> None:
    tensors = to_timm(
        {
            "patch_embed.proj.weight": torch.ones(1),
            "blocks.1.7.mlp.w12.weight": torch.ones(2),
            "blocks.1.7.mlp.w3.bias": torch.ones(3),
        },
        "file",
    )
    assert set(tensors) == {"patch_embed.proj.weight", "blocks.7.mlp.fc1.weight", "blocks.7.mlp.fc2.bias"}


@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_positions_of_another_grid_are_resampled_and_the_log_says_so(
    registers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = dinov2(registers), dinov2(registers, image_size=(42, 56))
    with caplog.at_level(logging.INFO, logger="simo_merge"):
        load_into(target, dict(source.state_dict()), "file")
    prefix = 0 if registers else 1
    old, new = source.pos_embed.detach(), target.pos_embed.detach()
    torch.testing.assert_close(new[:, :prefix], old[:, :prefix])
    grid = old[:, prefix:].reshape(1, 5, 5, 24).permute(0, 3, 1, 2)
    want = nn.functional.interpolate(grid, size=(3, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(new[:, prefix:].reshape(1, 3, 4, 24).permute(0, 3, 1, 2), want)
    assert "5x5 to 3x4" in caplog.text


def test_positions_of_a_grid_that_is_not_square_load_into_the_same_grid_only() -> None:
    source = dinov2(image_size=(42, 56))
    same = create_vit("vit_small_patch14_dinov2", (42, 56), **SMALL)
    load_into(same, dict(source.state_dict()), "file")
    assert fingerprint(same.state_dict()) == fingerprint(source.state_dict())
    with pytest.raises(SimoError, match=r"no square grid.*image_size"):
        load_into(dinov2(), dict(source.state_dict()), "file")


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_timms_own_layout_of_other_families_loads_unchanged(name: str) -> None:
    size = (42, 70) if "patch14" in name else (48, 80)
    source = randomised(create_vit(name, size, depth=2))
    target = create_vit(name, size, depth=2)
    load_into(target, {**source.state_dict(), "head.weight": torch.ones(3), "mask_token": torch.ones(1)}, "file")
    assert fingerprint(target.state_dict()) == fingerprint(source.state_dict())
