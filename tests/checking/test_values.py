"""Depth and disparity in the wrong bits, the wrong unit, or with the wrong sign for none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.checking import check_dataset
from simo_merge.data import FolderDataset, Sample
from simo_merge.tasks import Depth, Disparity, Segmentation
from tests.checking.conftest import Failure, Listed, WriteRooms, codes, with_target

FOCAL_TIMES_BASELINE = 30.0
SKY = 11  # the rooms' wall plays the sky


def depths(dataset: Listed, change: Callable[[Tensor], Tensor]) -> Listed:
    return dataset.of("depth").changed(lambda s, _: with_target(s, "depth", change(s.targets["depth"]).float()))


@pytest.mark.parametrize(
    "change",
    [
        lambda depth: (depth * 1000 / 256).floor().clamp(min=1) / 1000,  # the high byte, read as millimetres
        lambda depth: (depth * 1000 / 256).floor().clamp(min=1) * 0.256,  # the high byte, scaled back
        lambda depth: (depth * 1000 % 256).floor().clamp(min=1) / 1000,  # the low byte
        lambda depth: (depth / 8 * 255).round().clamp(min=1) * 8 / 255,  # a picture of depth
    ],
    ids=["high byte", "high byte scaled", "low byte", "eight bits of range"],
)
def test_sixteen_bits_that_were_read_as_eight_fail(
    sound: Listed, failure: Failure, change: Callable[[Tensor], Tensor]
) -> None:
    finding = failure(depths(sound.first(6), change), "eight-bit")
    assert "different values occur in 6 images" in finding.message
    assert "IMREAD_UNCHANGED" in finding.message


def test_sixteen_bits_that_were_cut_off_at_255_fail(sound: Listed, failure: Failure) -> None:
    finding = failure(depths(sound.first(6), lambda depth: (depth * 1000).clamp(max=255) / 1000), "constant")
    assert "every valid pixel is 0.255 m" in finding.message


def test_depth_in_centimetres_has_enough_steps(sound: Listed) -> None:
    assert check_dataset(depths(sound.first(6), lambda depth: (depth * 100).round() / 100)).sound


def test_a_few_pixels_with_few_values_are_no_proof(sound: Listed) -> None:
    small = sound.of("depth").first(1)
    few = depths(small, lambda depth: depth.round())
    tiny = few.changed(lambda s, _: with_target(s, "depth", s.targets["depth"], _corner(s)))
    assert "eight-bit" not in [code for _, code, _ in codes(check_dataset(tiny))]


def test_eight_bit_files_fail_unless_they_are_declared(write_rooms: WriteRooms, failure: Failure) -> None:
    root = write_rooms(2, {"depth": lambda depth: (depth // 32).astype(np.uint8)}, depth={"bits": 8, "scale": 0.032})
    failure(FolderDataset(root, tasks=["depth"]), "eight-bit", "warning")
    text = (root / "dataset.yaml").read_text(encoding="utf-8")
    (root / "dataset.yaml").write_text(text.replace("bits: 8", "bits: null"), encoding="utf-8")
    failure(FolderDataset(root, tasks=["depth"]), "eight-bit")


@pytest.mark.parametrize(("scale", "said"), [(1000, "millimetres"), (1 / 1000, "another unit")])
def test_metres_that_are_none_fail(sound: Listed, failure: Failure, scale: float, said: str) -> None:
    finding = failure(depths(sound.first(3), lambda depth: depth * scale), "unit")
    assert said in finding.message


def test_another_unit_than_metres_is_not_judged(sound: Listed) -> None:
    millimetres = depths(sound.first(3), lambda depth: depth * 1000)
    millimetres.tasks["depth"] = Depth(unit="mm")
    assert check_dataset(millimetres).sound


def test_a_sign_for_none_that_counts_as_depth_fails(write_rooms: WriteRooms, failure: Failure) -> None:
    def holes(depth: np.ndarray) -> np.ndarray:
        depth = depth.copy()
        depth[:20] = 65535
        return depth

    finding = failure(FolderDataset(write_rooms(2, {"depth": holes}), tasks=["depth"]), "largest")
    assert "largest number that the file's type has (65.54 m)" in finding.message


def test_depths_that_a_known_data_set_has_not_fail(sound: Listed, failure: Failure) -> None:
    far = depths(sound.first(3), lambda depth: torch.where(depth > 4, 128.0, depth))
    taskonomy = Listed(far.samples, far.tasks, "taskonomy")
    assert "65535" in failure(taskonomy, "largest").message
    assert "exactly the largest value, 128 m" in failure(far, "largest", "warning").message


# -- labels at all ------------------------------------------------------------------------------------------------


def test_an_image_without_labels_is_noted_and_many_are_a_warning(sound: Listed, failure: Failure) -> None:
    def without(places: range) -> Listed:
        return (
            sound.of("depth")
            .first(10)
            .changed(
                lambda s, place: with_target(s, "depth", s.targets["depth"], torch.full(s.size, place not in places))
            )
        )

    assert failure(without(range(1)), "images-without-label", "note").keys == sound.keys[:1]
    assert failure(without(range(4)), "images-without-label", "warning").keys == sound.keys[:4]
    assert "the wrong way round" in failure(without(range(10)), "no-labels").message


def test_few_labels_are_a_warning(sound: Listed, failure: Failure) -> None:
    corner = sound.of("depth").first(3).changed(lambda s, _: with_target(s, "depth", s.targets["depth"], _corner(s)))
    assert "only 5.5 % of the pixels" in failure(corner, "few-labels", "warning").message


def _corner(sample: Sample) -> Tensor:
    mask = torch.zeros(sample.size, dtype=torch.bool)
    mask[:30, :39] = True
    return mask


# -- disparity ----------------------------------------------------------------------------------------------------


def streets(sound: Listed, scale: float = 1.0, unit: str = "px", sky_is_missing: bool = False) -> Listed:
    """Disparity of the rooms; the wall is sky, infinitely far, and the left border was not measured."""

    def change(sample: Sample, place: int) -> Sample:
        sky = sample.targets["segmentation"] == SKY
        disparity = torch.where(sky, 0.0, scale * FOCAL_TIMES_BASELINE / sample.targets["depth"])
        mask = torch.ones(sample.size, dtype=torch.bool)
        mask[:, :12] = False
        return with_target(sample, "disparity", disparity, mask & ~sky if sky_is_missing else mask)

    classes = tuple("sky" if name == "wall" else name for name in sound.tasks["segmentation"].classes)
    tasks = {
        "segmentation": Segmentation(classes=classes),
        "disparity": Disparity(unit=unit),
        **sound.of("depth").tasks,
    }
    return Listed(sound.changed(change).samples, tasks, "streets")


def test_infinity_on_the_sky_is_sound(sound: Listed) -> None:
    right = streets(sound.first(10))
    assert check_dataset(right.of("segmentation", "disparity")).sound
    assert check_dataset(right.of("disparity")).sound


def test_missing_disparity_that_counts_as_infinity_fails(sound: Listed, failure: Failure) -> None:
    def filled(sample: Sample, place: int) -> Sample:
        mask = sample.masks["disparity"]
        return with_target(sample, "disparity", sample.targets["disparity"] * mask, torch.ones_like(mask))

    wrong = streets(sound.first(10)).changed(filled).of("disparity")
    assert "hardly any pixel is invalid" in failure(wrong, "zero-disparity").message

    def sky_was_measured(sample: Sample, place: int) -> Sample:
        disparity = sample.targets["disparity"].clone()
        disparity[disparity == 0] = 0.5
        return with_target(sample, "disparity", disparity)

    with_classes = streets(sound.first(10)).changed(sky_was_measured).changed(filled).of("segmentation", "disparity")
    assert "of those lie on sky" in failure(with_classes, "zero-disparity").message


def test_infinity_that_is_declared_invalid_fails(write_rooms: WriteRooms, failure: Failure) -> None:
    def described(invalid: list[int]) -> dict[str, object]:
        return {"kind": "disparity", "scale": 1 / 256, "offset": -1 / 256, "invalid": invalid}

    def disparity(depth: np.ndarray) -> np.ndarray:
        return (256 * FOCAL_TIMES_BASELINE * 1000 / depth + 1).astype(np.uint16)

    root = write_rooms(2, {"depth": disparity}, depth=described([0, 1]))
    assert (
        "is listed under invalid; it is a measurement"
        in failure(FolderDataset(root, tasks=["depth"]), "lost-infinity").message
    )
    text = (root / "dataset.yaml").read_text(encoding="utf-8")
    (root / "dataset.yaml").write_text(text.replace("- 0\n    - 1", "- 0"), encoding="utf-8")
    assert check_dataset(FolderDataset(root, tasks=["depth"])).sound


def test_a_sky_without_disparity_is_noted(sound: Listed, failure: Failure) -> None:
    lost = streets(sound.first(10), sky_is_missing=True).of("segmentation", "disparity")
    assert "sky" in failure(lost, "lost-infinity", "note").message


@pytest.mark.parametrize(
    ("scale", "unit", "said"),
    [
        (256.0, "px", "need a scale"),
        (2048 / 168 * 256, "px@2048", "in an image 2048 wide"),
        (1 / 65535, "px@2048", "fractions"),
        (1.0, "published", "1 is the most"),
    ],
)
def test_disparities_of_another_unit_fail(sound: Listed, failure: Failure, scale: float, unit: str, said: str) -> None:
    assert said in failure(streets(sound.first(4), scale, unit).of("disparity"), "unit").message


def test_disparity_of_the_published_unit_is_sound(sound: Listed) -> None:
    assert check_dataset(streets(sound.first(4), 1 / 256, "published").of("disparity")).sound


def test_depth_and_disparity_belong_together(sound: Listed, failure: Failure) -> None:
    right = streets(sound.first(8))
    assert check_dataset(right.of("depth", "disparity")).sound

    def without_offset(sample: Sample, place: int) -> Sample:
        disparity = sample.targets["disparity"]
        return with_target(sample, "disparity", torch.where(disparity > 0, disparity + 12, 0.0))

    finding = failure(right.changed(without_offset).of("depth", "disparity"), "depth-disparity")
    assert "of 8 images depth times disparity is not the same" in finding.message
    assert len(finding.keys) >= 7
    other = [with_target(s, "depth", right.samples[i - 1].targets["depth"]) for i, s in enumerate(right.samples)]
    mixed = Listed(other, right.tasks, right.name).of("depth", "disparity")
    assert len(failure(mixed, "depth-disparity").keys) >= 7
