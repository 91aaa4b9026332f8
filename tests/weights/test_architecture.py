"""Encoders without weights: every family, any image size, and names that cannot be built."""

from __future__ import annotations

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.weights import build_vit
from simo_merge.weights.architecture import create_vit
from tests.weights.models import SMALL, taps

FAMILIES = [
    ("vit_tiny_patch16_224", (48, 80), (3, 5), 1),
    ("vit_small_patch14_dinov2", (42, 70), (3, 5), 1),
    ("vit_small_patch14_reg4_dinov2", (42, 70), (3, 5), 5),
    ("vit_small_patch16_dinov3", (48, 80), (3, 5), 5),
    ("deit_tiny_distilled_patch16_224", (48, 80), (3, 5), 2),
    ("deit3_small_patch16_224", (48, 80), (3, 5), 1),
    ("eva02_tiny_patch14_224", (42, 70), (3, 5), 1),
    ("beit_base_patch16_224", (48, 80), (3, 5), 1),
    ("beitv2_base_patch16_224", (48, 80), (3, 5), 1),
]


@pytest.mark.parametrize(("name", "size", "grid", "prefix"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_every_family_gives_maps_and_prefix_tokens_of_oblong_images(
    name: str, size: tuple[int, int], grid: tuple[int, int], prefix: int
) -> None:
    for image_size in [size] if name.startswith("beit") else [size, None]:
        vit = create_vit(name, image_size, depth=2)
        for features, tokens in taps(vit, *size):
            channels = features.shape[1]
            assert features.shape == (2, channels, *grid)
            assert tokens.shape == (2, prefix, channels)
            assert torch.isfinite(features).all()
        assert len(vit.pretrained_cfg["mean"]) == len(vit.pretrained_cfg["std"]) == 3


def test_one_model_reads_images_of_other_sizes_than_the_one_it_was_built_for() -> None:
    vit = create_vit("vit_small_patch14_dinov2", (42, 70), **SMALL)
    assert taps(vit, 70, 28)[0][0].shape == (2, 24, 5, 2)


def test_dinov2_is_built_whole_with_imagenet_statistics_and_in_evaluation_mode() -> None:
    vit = build_vit("vit_small_patch14_dinov2.lvd142m")
    assert sum(p.numel() for p in vit.parameters()) == 22_056_192
    assert tuple(vit.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    assert not vit.training


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_smal_patch14_dinov2", None, ["vit_smal_patch14_dinov2", "vit_small_patch14_dinov2"]),
        ("vit_small_patch14_dinov2.nope", None, ["nope", "lvd142m"]),
        ("resnet18", None, ["resnet", "not a plain ViT", "vision_transformer"]),
        ("swin_tiny_patch4_window7_224", None, ["not a plain ViT"]),
        ("beit_base_patch16_224", None, ["image_size", "(224, 224)"]),
        ("vit_small_patch14_dinov2", (224, 225), ["14x14", "(224, 224)"]),
        ("vit_small_patch14_dinov2", (0, 224), ["(0, 224)", "positive"]),
    ],
)
def test_a_name_or_a_size_that_cannot_be_built_says_what_can(
    name: str, size: tuple[int, int] | None, words: list[str]
) -> None:
    with pytest.raises(SimoError) as caught:
        build_vit(name, size)
    assert all(word in str(caught.value) for word in words), caught.value
