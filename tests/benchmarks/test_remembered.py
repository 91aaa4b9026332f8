"""Remembered taps: an encoder runs once on the same images, another encoder anew, and nothing else is different."""

from __future__ import annotations

import torch

from bench.remembered import RememberedTaps
from simo_merge.models import Encoder
from tests.tiny import tiny_base


def encoder_of(seed: int) -> Encoder:
    base = tiny_base(seed)
    return Encoder(base.vit, base.name, None).eval()


def runs_of(encoder: Encoder) -> list[int]:
    counted: list[int] = []
    encoder.vit.register_forward_pre_hook(lambda *_: counted.append(1))
    encoder.vit.blocks[0].register_forward_pre_hook(lambda *_: counted.append(1))  # type: ignore[index, union-attr]
    return counted


@torch.inference_mode()
def test_the_same_images_are_run_once_and_give_the_same_taps() -> None:
    store, encoder, images = RememberedTaps(), encoder_of(0), torch.rand(2, 3, 32, 48)
    plain = encoder(images)
    counted = runs_of(encoder)
    for _ in range(3):
        with store.serving(encoder):
            found = encoder(images)
            assert all(
                torch.equal(a, b) for a, b in zip(found.maps + found.prefix, plain.maps + plain.prefix, strict=True)
            )
            found.maps[0].zero_()  # what is given away is a copy
    once = len(counted)
    assert once > 0
    with store.serving(encoder):
        encoder(images + 0.01)
    assert len(counted) == 2 * once
    encoder(images)  # outside it runs as ever
    assert len(counted) == 3 * once


@torch.inference_mode()
def test_another_encoder_is_run_anew() -> None:
    store, images = RememberedTaps(), torch.rand(2, 3, 32, 48)
    first, second = encoder_of(0), encoder_of(1)
    for encoder in (first, second):
        with store.serving(encoder):
            assert torch.equal(encoder(images).maps[0], encoder_of(0 if encoder is first else 1)(images).maps[0])


@torch.inference_mode()
def test_no_more_is_kept_than_may_be() -> None:
    store, encoder, images = RememberedTaps(limit=10), encoder_of(0), torch.rand(2, 3, 32, 48)
    counted = runs_of(encoder)
    with store.serving(encoder):
        encoder(images)
        once = len(counted)
        encoder(images)
    assert len(counted) == 2 * once


@torch.inference_mode()
def test_the_same_values_in_another_shape_are_other_images() -> None:
    store, encoder = RememberedTaps(), encoder_of(0)
    with store.serving(encoder):
        lying, standing = (encoder(torch.full((1, 3, *size), 0.5)).maps[0] for size in ((32, 48), (48, 32)))
    assert (lying.shape[-2:], standing.shape[-2:]) == ((2, 3), (3, 2))
