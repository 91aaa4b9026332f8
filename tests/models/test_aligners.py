"""Aligners: fresh ones change nothing, fitted ones follow their formulas on patches and on prefix tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Taps, aligner_from_config
from simo_merge.models.aligners import TAP_ALIGNERS, SpatialTap, TapAligner

KINDS: dict[str, dict[str, Any]] = {
    "surgery": {"rank": 2},
    "linear-surgery": {"rank": 2},
    "affine": {},
    "identity": {},
    "shift": {},
    "magnitude": {},
    "full-affine": {},
    "cross-tap": {"rank": 2},
    "token-linear": {"rank": 2},
    "spatial": {"rank": 2, "directions": 3},
}
MIXED = [{"kind": "cross-tap", "rank": None}, {"kind": "linear-surgery", "rank": 3}]
PUBLISHED = ("surgery", "linear-surgery", "affine")
CHANNELS = (4, 6)


def random_taps(prefix: int = 2) -> Taps:
    return Taps(
        tuple(torch.randn(3, c, 2, 3) for c in CHANNELS),
        tuple(torch.randn(3, prefix, c) for c in CHANNELS),
    )


def fitted(kind: str, prefix: int = 2, stretched: str | None = None) -> Aligner:
    stretch = {} if stretched is None else {"stretched": stretched}
    aligner = Aligner(kind, CHANNELS, prefix, **KINDS[kind], **stretch)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.normal_()
    return aligner


def test_every_kind_is_tried_here() -> None:
    assert set(KINDS) == set(TAP_ALIGNERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_a_fresh_aligner_changes_nothing(kind: str, prefix: int) -> None:
    taps = random_taps(prefix)
    aligned = Aligner(kind, CHANNELS, prefix, **KINDS[kind])(taps)
    for ours, theirs in zip((*aligned.maps, *aligned.prefix), (*taps.maps, *taps.prefix), strict=True):
        assert torch.equal(ours, theirs)


def plain(kind: str, weights: dict[str, Tensor], token: Tensor, prefix: int | None) -> Tensor:
    """One token, (C,) -> (C,); prefix: which prefix token it is, None for a patch."""
    if kind == "surgery":
        return token - weights["up.weight"] @ (weights["down.weight"] @ token).clamp(min=0)
    if kind == "linear-surgery":
        offset = weights["patch_offset"] if prefix is None else weights["prefix_offset"][prefix]
        return token + weights["up.weight"] @ (weights["down.weight"] @ token) + offset
    scale, shift = (
        weights[f"patch_{part}"] if prefix is None else weights[f"prefix_{part}"][prefix] for part in ("scale", "shift")
    )
    return token * scale + shift


@pytest.mark.parametrize("kind", PUBLISHED)
def test_every_token_goes_through_the_formula(kind: str) -> None:
    taps, aligner = random_taps(), fitted(kind)
    with torch.inference_mode():
        aligned = aligner(taps)
    for tap, module in enumerate(aligner.taps):
        weights = module.state_dict()
        for image in range(3):
            for y in range(2):
                for x in range(3):
                    wanted = plain(kind, weights, taps.maps[tap][image, :, y, x], None)
                    torch.testing.assert_close(aligned.maps[tap][image, :, y, x], wanted)
            for index in range(2):
                wanted = plain(kind, weights, taps.prefix[tap][image, index], index)
                torch.testing.assert_close(aligned.prefix[tap][image, index], wanted)


def maps_of(tap_aligner: object) -> Any:
    assert isinstance(tap_aligner, TapAligner)
    return tap_aligner.maps()


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("surgery", "spatial")])
def test_an_affine_aligner_is_the_maps_that_it_says_it_is(kind: str, prefix: int) -> None:
    taps, aligner = random_taps(prefix), fitted(kind, prefix)
    aligned = aligner(taps)
    for index, module in enumerate(aligner.taps):
        maps = maps_of(module)
        sources = range(len(CHANNELS)) if kind == "cross-tap" else [index]
        patches = torch.cat([taps.maps[i] for i in sources], dim=1).double()
        wanted = torch.einsum("cd,bdhw->bchw", maps.patch, patches) + maps.patch_offset[:, None, None]
        torch.testing.assert_close(aligned.maps[index], wanted.float())
        tokens = torch.cat([taps.prefix[i] for i in sources], dim=2).double()
        wanted = torch.einsum("pcd,bpd->bpc", maps.prefix, tokens) + maps.prefix_offset
        torch.testing.assert_close(aligned.prefix[index], wanted.float())


@pytest.mark.parametrize("kind", ["surgery", "spatial"])
def test_an_aligner_that_is_not_affine_in_a_token_has_no_maps(kind: str) -> None:
    assert all(maps_of(module) is None for module in fitted(kind).taps)


def test_spatial_surgery_adds_what_the_patches_around_say() -> None:
    taps, aligner = random_taps(), fitted("spatial")
    aligned = aligner(taps)
    for tap, module in enumerate(aligner.taps):
        w = module.state_dict()
        for y in range(2):
            for x in range(3):
                token = taps.maps[tap][1, :, y, x]
                inner = w["down.weight"] @ token
                for dy in range(3):
                    for dx in range(3):
                        row, column = y + dy - 1, x + dx - 1
                        if 0 <= row < 2 and 0 <= column < 3:
                            picked = w["pick.weight"] @ taps.maps[tap][1, :, row, column] + w["pick.bias"]
                            inner = inner + w["around"][:, :, dy, dx] @ picked
                wanted = token + w["up.weight"] @ inner + w["patch_offset"]
                torch.testing.assert_close(aligned.maps[tap][1, :, y, x], wanted)
        for index in range(2):
            token = taps.prefix[tap][1, index]
            wanted = token + w["up.weight"] @ (w["down.weight"] @ token) + w["prefix_offset"][index]
            torch.testing.assert_close(aligned.prefix[tap][1, index], wanted)


def test_spatial_surgery_without_its_grid_is_refused() -> None:
    with pytest.raises(SimoError, match=r"grid of its 6 patches, got \(2, 2\)"):
        SpatialTap(4, 1, rank=2, directions=2)(torch.randn(1, 6, 4), torch.randn(1, 1, 4), (2, 2))


def test_taps_of_one_aligner_can_be_of_different_kinds() -> None:
    aligner = Aligner("per-tap", CHANNELS, 2, each=MIXED)
    torch.nn.init.normal_(aligner.get_parameter("taps.0.change.full"))
    again = aligner_from_config(json.loads(json.dumps(aligner.config)))
    again.load_state_dict(aligner.state_dict())
    taps = random_taps()
    assert torch.equal(again(taps).maps[0], aligner(taps).maps[0])
    assert torch.equal(aligner(taps).maps[1], taps.maps[1])


@pytest.mark.parametrize(("kind", "each"), [("per-tap", None), ("per-tap", MIXED[:1]), ("affine", MIXED)])
def test_kinds_of_taps_that_are_not_one_a_tap_are_refused(kind: str, each: list[dict[str, Any]] | None) -> None:
    with pytest.raises(SimoError, match="give one a tap with kind 'per-tap'"):
        Aligner(kind, CHANNELS, 2, each=each)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_layout_of_the_maps_does_not_matter(kind: str) -> None:
    taps, aligner = random_taps(), fitted(kind)
    other = Taps(tuple(m.to(memory_format=torch.channels_last) for m in taps.maps), taps.prefix)
    for ours, theirs in zip(aligner(other).maps, aligner(taps).maps, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stretched", [None, "channels", "directions"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_an_aligner(kind: str, stretched: str | None) -> None:
    aligner = fitted(kind, stretched=stretched)
    taps = random_taps()
    taps.maps[0][:, 1] += 1000.0  # residual streams have such channels, and bfloat16 keeps eight bits
    expected = aligner(taps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned = aligner(taps)
    for ours, theirs in zip((*aligned.maps, *aligned.prefix), (*expected.maps, *expected.prefix), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_another_precision_are_aligned_in_the_weights_own(kind: str) -> None:
    taps, aligner = random_taps(), fitted(kind)
    half = Taps(tuple(m.bfloat16() for m in taps.maps), tuple(p.bfloat16() for p in taps.prefix))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned = aligner(half)
    wide = Taps(tuple(m.float() for m in half.maps), tuple(p.float() for p in half.prefix))
    for ours, theirs in zip(aligned.maps, aligner(wide).maps, strict=True):
        torch.testing.assert_close(ours.float(), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_an_aligner_can_be_built_again_from_its_config_as_json(kind: str) -> None:
    first = fitted(kind)
    again = aligner_from_config(json.loads(json.dumps(first.config)))
    again.load_state_dict(first.state_dict())
    taps = random_taps()
    assert torch.equal(again(taps).maps[1], first(taps).maps[1])


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match=r"unknown aligner 'rotation'; known: affine, cross-tap, .*surgery"):
        Aligner("rotation", CHANNELS, 1)


@pytest.mark.parametrize(("kind", "options"), [("affine", {"rank": 3}), ("surgery", {}), ("surgery", {"width": 3})])
def test_options_that_do_not_fit_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(SimoError, match=f"options of aligner '{kind}' do not fit"):
        Aligner(kind, CHANNELS, 1, **options)


def test_a_config_without_its_parts_is_refused() -> None:
    with pytest.raises(SimoError, match="does not describe an aligner"):
        aligner_from_config({"kind": "affine"})
