"""Files that are missing, damaged, doubled or in the wrong list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from simo_merge.checking import check_dataset
from simo_merge.data import FolderDataset
from tests.checking.conftest import Failure, Listed, WriteRooms, codes, with_target


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_every_damaged_file_is_named_and_the_check_goes_on(write_rooms: WriteRooms, failure: Failure) -> None:
    root = write_rooms(4)
    keys = sorted(path.stem for path in (root / "images").iterdir())
    cut(root / "depth" / f"{keys[0]}.png")
    cut(root / "normals" / f"{keys[0]}.png")
    cut(root / "images" / f"{keys[2]}.png")
    finding = failure(FolderDataset(root), "unreadable")
    assert finding.keys == (keys[0], keys[2])
    assert "2 of 4 images cannot be read" in finding.message
    named = "\n".join(finding.details)
    for place in (f"depth/{keys[0]}.png", f"normals/{keys[0]}.png", f"images/{keys[2]}.png"):
        assert str(root / place) in named
    assert len(finding.details) == 3
    assert check_dataset(FolderDataset(root)).statistics.images.count == 2


def test_a_sixteen_bit_file_that_was_saved_with_eight_bits_is_named(write_rooms: WriteRooms, failure: Failure) -> None:
    root = write_rooms(2, {"depth": lambda depth: (depth >> 8).astype(np.uint8)})
    finding = failure(FolderDataset(root), "unreadable")
    assert "8-bit values" in finding.message
    assert "2 of 2 images" in finding.message
    assert len(finding.details) == 2


def test_a_class_id_out_of_range_is_named(write_rooms: WriteRooms, failure: Failure) -> None:
    root = write_rooms(2, {"segmentation": lambda ids: ids + 1})
    finding = failure(FolderDataset(root), "unreadable")
    assert "expected 1 to 13" in finding.message


def test_values_that_no_reader_may_hand_out_are_named(sound: Listed, failure: Failure) -> None:
    def broken(sample, place):
        depth = sample.targets["depth"].clone()
        depth[0, 0, 0] = torch.nan if place == 1 else depth[0, 0, 0]
        return with_target(sample, "depth", depth)

    finding = failure(sound.first(3).changed(broken), "unreadable")
    assert finding.keys == (sound.keys[1],)
    assert "NaN" in finding.message

    def void(sample, place):
        return with_target(sample, "segmentation", sample.targets["segmentation"] - (place == 2) * 100)

    assert "must be masked" in failure(sound.first(3).changed(void), "unreadable").message

    def small(sample, place):
        return with_target(sample, "depth", sample.targets["depth"][:, ::2])

    assert "those of the image" in failure(sound.first(3).changed(small), "unreadable").message


def test_a_partial_copy_is_a_warning_with_both_numbers(sound: Listed, failure: Failure) -> None:
    partial = Listed(sound.samples[:3], sound.tasks, published=795)
    finding = failure(partial, "partial", "warning")
    assert "3 of the 795" in finding.message
    assert check_dataset(partial).sound
    whole = Listed(sound.samples[:3], sound.tasks, published=3)
    assert "partial" not in [code for _, code, _ in codes(check_dataset(whole))]


def test_a_picture_that_occurs_twice_is_a_warning_that_names_both(sound: Listed, failure: Failure) -> None:
    def doubled(sample, place):
        return replace(sample, image=sound.samples[0].image) if place in (2, 3) else sample

    finding = failure(sound.of("segmentation").first(5).changed(doubled), "duplicate", "warning")
    assert finding.keys == (sound.keys[0], sound.keys[2], sound.keys[3])
    assert "2 pictures occur a second time" in finding.message


def test_splits_are_counted_and_twins_in_two_of_them_are_told(write_rooms: WriteRooms, everything: Listed) -> None:
    keys = list(everything.keys[:3])
    root = write_rooms(3, splits={"train": keys[:2], "val": keys[2:]})
    (root / "images" / f"{keys[2]}.png").write_bytes((root / "images" / f"{keys[0]}.png").read_bytes())
    findings = check_dataset(FolderDataset(root))
    assert findings.to_json()["splits"] == {
        "train": {"here": 2, "published": None},
        "val": {"here": 1, "published": None},
    }
    twins = next(finding for finding in findings.findings if finding.code == "duplicate")
    assert twins.details == (f"{keys[0]} (train) = {keys[2]} (val)",)


def test_an_image_in_train_and_test_is_a_failure(write_rooms: WriteRooms, everything: Listed, failure: Failure) -> None:
    keys = list(everything.keys[:3])
    root = write_rooms(3, splits={"train": keys[:2], "test": keys[1:]})
    finding = failure(FolderDataset(root), "leak")
    assert finding.keys == (keys[1],)
    assert "train and test" in finding.message


def test_a_split_that_lists_what_is_not_there_is_a_failure(
    write_rooms: WriteRooms, everything: Listed, failure: Failure
) -> None:
    root = write_rooms(2, splits={"train": [everything.keys[0]], "val": ["nothing"]})
    assert "split val" in failure(FolderDataset(root), "split").message
    one = check_dataset(FolderDataset(root, "train"))
    assert codes(one) == [("note", "absent-classes", "segmentation")], "other splits are not looked at"
