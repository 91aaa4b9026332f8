"""Pictures of the wrong size or brightness."""

from __future__ import annotations

from dataclasses import replace

import torch

from simo_merge.checking import check_dataset
from simo_merge.data import Sample, resize
from tests.checking.conftest import Failure, Listed, codes


def test_a_size_of_no_known_layout_fails(sound: Listed, failure: Failure) -> None:
    turned = sound.first(2).changed(lambda sample, _: _transposed(sample))
    finding = failure(turned, "size")
    assert "2 pictures are 168x126" in finding.message
    assert "published as 126x168" in finding.message


def test_a_resized_copy_is_a_warning(sound: Listed, failure: Failure) -> None:
    half = sound.first(2).changed(lambda sample, _: resize(sample, (63, 84)))
    assert "resized copy" in failure(half, "size", "warning").message


def test_sizes_of_an_unknown_data_set_are_its_own_affair(sound: Listed) -> None:
    mine = Listed(sound.first(2).samples, sound.tasks, name="mine")
    turned = mine.changed(lambda sample, _: _transposed(sample))
    assert "size" not in [code for _, code, _ in codes(check_dataset(turned))]


def test_several_sizes_are_noted(sound: Listed, failure: Failure) -> None:
    mine = Listed(sound.of("segmentation").first(4).samples, sound.of("segmentation").tasks, name="mine")
    mixed = mine.changed(lambda sample, place: resize(sample, (63, 84)) if place == 1 else sample)
    assert "3 of 126x168, 1 of 63x84" in failure(mixed, "several-sizes", "note").message


def test_pictures_that_were_divided_by_255_twice_fail(sound: Listed, failure: Failure) -> None:
    dark = sound.first(3).changed(lambda sample, _: replace(sample, image=sample.image / 255))
    assert "divided by 255 twice" in failure(dark, "dark").message


def test_pixels_beyond_one_fail(sound: Listed, failure: Failure) -> None:
    bright = sound.first(3).changed(lambda sample, _: replace(sample, image=sample.image * 255))
    assert "expected 0 to 1" in failure(bright, "pixel-range").message


def test_pictures_of_one_colour_are_named_and_are_no_twins(sound: Listed, failure: Failure) -> None:
    def blank(sample, place):
        return replace(sample, image=torch.full_like(sample.image, 0.5)) if place < 2 else sample

    finding = failure(sound.of("segmentation").first(4).changed(blank), "one-colour", "warning")
    assert finding.keys == sound.keys[:2]
    assert "duplicate" not in [code for _, code, _ in codes(check_dataset(sound.first(4).changed(blank)))]


def _transposed(sample: Sample) -> Sample:
    def turn(values: torch.Tensor) -> torch.Tensor:
        return values.transpose(-1, -2).contiguous()

    targets = {name: turn(target) for name, target in sample.targets.items()}
    if "normals" in targets:
        targets["normals"] = targets["normals"][[1, 0, 2]]
    masks = {name: turn(mask) for name, mask in sample.masks.items()}
    return Sample(turn(sample.image), targets, masks, sample.key)
