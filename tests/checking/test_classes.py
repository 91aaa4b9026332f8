"""Class ids that do not mean what the names say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simo_merge.checking import check_dataset, facts
from simo_merge.checking.rules.classes import best_shift, distance
from simo_merge.data import FolderDataset, Sample
from simo_merge.tasks import Segmentation
from tests.checking.conftest import Failure, Listed, WriteRooms, codes, with_target


def shifted(sample: Sample, by: int) -> Sample:
    """Ids moved by one; what leaves the classes is void, as where first_class or invalid is wrong."""
    ids = sample.targets["segmentation"] + by
    inside = (ids >= 0) & (ids < 13)
    return with_target(sample, "segmentation", torch.where(inside, ids, 0), inside)


@pytest.mark.parametrize(("by", "said"), [(1, "the first class, bed,"), (-1, "the last class, window,")])
def test_ids_that_are_shifted_by_one_fail(sound: Listed, failure: Failure, by: int, said: str) -> None:
    finding = failure(sound.of("segmentation").changed(lambda sample, _: shifted(sample, by)), "shifted-classes")
    assert said in finding.message
    assert "shifted by one, " + ("up" if by > 0 else "down") in finding.message


def test_files_whose_first_class_is_mistaken_fail(write_rooms: WriteRooms, failure: Failure) -> None:
    root = write_rooms(30, {"segmentation": lambda ids: ids - 1})  # ids from 0, and 0 declared void
    assert "the last class, window," in failure(FolderDataset(root, tasks=["segmentation"]), "shifted-classes").message


def test_a_class_that_is_absent_in_a_few_images_is_a_note(sound: Listed, failure: Failure) -> None:
    def without_windows(sample: Sample, place: int) -> Sample:
        ids = sample.targets["segmentation"]
        return with_target(sample, "segmentation", torch.where(ids == 12, 11, ids))

    few = sound.of("segmentation").first(10).changed(without_windows)
    assert "window" in failure(few, "absent-classes", "note").message


def test_a_class_that_is_absent_in_the_middle_is_a_note(sound: Listed, failure: Failure) -> None:
    def without_tv(sample: Sample, place: int) -> Sample:
        ids = sample.targets["segmentation"]
        return with_target(sample, "segmentation", torch.where(ids == 10, 11, ids))

    finding = failure(sound.of("segmentation").changed(without_tv), "absent-classes", "note")
    assert finding.message == "1 of 13 classes does not occur: tv."


def void_is_class_0(sample: Sample, place: int) -> Sample:
    """A frame without labels, as NYUv2 has, of which the segmentation makes class 0."""
    frame = torch.ones(sample.size, dtype=torch.bool)
    frame[8:-8, 8:-8] = False
    sample = with_target(sample, "segmentation", torch.where(frame, 0, sample.targets["segmentation"].clamp(min=1)))
    return with_target(sample, "depth", sample.targets["depth"], ~frame)


def test_void_that_is_read_as_a_class_fails(sound: Listed, failure: Failure) -> None:
    finding = failure(sound.of("segmentation", "depth").first(6).changed(void_is_class_0), "void-class")
    assert "the class bed (index 0) lies where depth has no label" in finding.message


def test_sky_has_no_depth_and_is_no_void(sound: Listed) -> None:
    classes = ("sky", *sound.tasks["segmentation"].classes[1:])
    dataset = sound.of("segmentation", "depth").first(6).changed(void_is_class_0)
    dataset.tasks["segmentation"] = Segmentation(classes=classes)
    assert "void-class" not in [code for _, code, _ in codes(check_dataset(dataset))]


def drawn_from(known: facts.Shares, data: str, roll: int = 0, count: int = 24) -> Listed:
    """Images whose classes have the known shares, moved by `roll` ids."""
    names = tuple(known.percent)
    shares = np.array(list(known.percent.values()))
    rng = np.random.default_rng(0)
    samples = []
    for place in range(count):
        ids = torch.from_numpy(rng.choice(len(names), (48, 64), p=shares / shares.sum())) + roll
        inside = (ids >= 0) & (ids < len(names))
        samples.append(
            Sample(
                torch.rand(3, 48, 64),
                {"segmentation": ids.clamp(0, len(names) - 1)},
                {"segmentation": inside},
                f"{place}",
            )
        )
    return Listed(samples, {"segmentation": Segmentation(classes=names)}, data)


@pytest.mark.parametrize(
    ("data", "known"),
    [
        ("nyuv2", facts.NYUV2_13),
        ("nyuv2", facts.NYUV2_40),
        ("cityscapes", facts.CITYSCAPES_19),
        ("cityscapes", facts.CITYSCAPES_7),
    ],
)
def test_known_shares_tell_a_shift_by_one(data: str, known: facts.Shares) -> None:
    assert sum(known.percent.values()) == pytest.approx(100, abs=0.5)
    right = codes(check_dataset(drawn_from(known, data)))
    assert not [code for _, code, _ in right if code in ("shifted-classes", "class-shares")]
    for roll in (1, -1):
        findings = check_dataset(drawn_from(known, data, roll)).findings
        said = [f.message for f in findings if f.code == "shifted-classes" and "class ids are shifted" in f.message]
        assert len(said) == 1
        assert f"shifted by {roll:+d}" in said[0]


def test_unusual_shares_are_a_warning_that_names_the_usual_ones(failure: Failure) -> None:
    reversed_order = facts.Shares(
        dict(zip(facts.NYUV2_13.percent, [*facts.NYUV2_13.percent.values()][::-1], strict=True)), ""
    )
    finding = failure(drawn_from(reversed_order, "nyuv2"), "class-shares", "warning")
    assert "expected about wall 26.1 %" in finding.message


def test_another_list_of_classes_has_no_known_shares() -> None:
    assert facts.shares_of("nyuv2", ("wall", "floor")) is None
    assert facts.shares_of("mine", tuple(facts.NYUV2_13.percent)) is None
    assert facts.shares_of("cityscapes", ("Road", *tuple(facts.CITYSCAPES_19.percent)[1:])) is facts.CITYSCAPES_19


def test_the_distance_of_shares_is_half_the_sum_of_differences() -> None:
    assert distance(np.array([1.0, 0, 0]), np.array([0, 1.0, 1.0])) == 1
    assert distance(np.array([0.5, 0.5]), np.array([1.0, 1.0])) == 0
    shift, left = best_shift(np.array([0, 0.7, 0.3]), np.array([0.6, 0.3, 0.1]))
    assert shift == 1
    assert left == pytest.approx(abs(0.7 - 0.6 / 0.9))
