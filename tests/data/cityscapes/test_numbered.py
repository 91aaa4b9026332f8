"""MTAN's arrays and auto-lambda's pictures hold the same streets as the published files."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data.cityscapes import cityscapes
from simo_merge.data.splits import published
from simo_merge.errors import SimoError
from tests.trees import cityscapes as tree

TASKS = ["segmentation", "parts", "disparity"]


# -- the layouts agree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["mtan", "png"])
@pytest.mark.parametrize("classes", [19, 7])
@pytest.mark.parametrize("unit", ["px@2048", "px@512", "published"])
def test_every_layout_gives_the_same_numbers(
    official: Path, request: pytest.FixtureRequest, layout: str, classes: int, unit: str
) -> None:
    other = cityscapes(request.getfixturevalue(layout), tasks=TASKS, classes=classes, disparity=unit)
    first = cityscapes(official, tasks=TASKS, classes=classes, disparity=unit)
    assert other.source.layout == layout
    assert other.tasks == first.tasks
    assert other.keys == tuple(f"{split}/{number}" for split, number, _ in tree.numbered())
    for one, two in zip(first, other, strict=True):
        torch.testing.assert_close(two.image, one.image, rtol=0, atol=1e-7)
        for name in TASKS:
            assert torch.equal(one.masks[name], two.masks[name]), name
            mask = one.masks[name]
            assert torch.equal(one.targets[name][..., mask], two.targets[name][..., mask]), name


@pytest.mark.parametrize("layout", ["official", "mtan", "png"])
def test_infinity_is_exactly_0_and_valid_in_every_layout(request: pytest.FixtureRequest, layout: str) -> None:
    sample = cityscapes(request.getfixturevalue(layout), "train", ["disparity"])[0]
    assert sample.targets["disparity"][0, 0, 1] == 0.0
    assert sample.masks["disparity"][0, :2].tolist() == [False, True]


@pytest.mark.parametrize("label_dtype", [np.float64, np.float32, np.int64, np.int8])
def test_labels_may_be_floats_or_integers(tmp_path: Path, label_dtype: type) -> None:
    sample = cityscapes(tree.write_mtan(tmp_path, label_dtype=label_dtype), "train", ["segmentation"])[0]
    index = tree.classes(tree.street(tree.FULL).ids, 19)
    assert (sample.masks["segmentation"].numpy() == (index >= 0)).all()
    assert sample.targets["segmentation"].dtype == torch.int64


def test_it_travels_to_worker_processes(mtan: Path) -> None:
    dataset = cityscapes(mtan, "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].targets["segmentation"], dataset[0].targets["segmentation"])


# -- folders of labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "top"), [(19, 18), (7, 6)])
def test_of_two_folders_the_one_with_the_classes_asked_for_is_read(mtan: Path, classes: int, top: int) -> None:
    dataset = cityscapes(mtan, "train", classes=classes)
    assert len(dataset.tasks["segmentation"].classes) == classes
    assert int(dataset[0].targets["segmentation"].max()) == top


@pytest.mark.parametrize(("there", "asked", "top"), [("label_7", 19, 7), ("label_19", 7, 19)])
def test_other_classes_than_those_asked_for_are_an_error(tmp_path: Path, there: str, asked: int, top: int) -> None:
    root = tree.write_mtan(tmp_path, labels=[there])
    with pytest.raises(SimoError, match=rf"has {there}/ with {top} classes, and {asked} .* ask for classes={top}"):
        cityscapes(root, "train", classes=asked)
    assert cityscapes(root, "train", ["disparity"], classes=asked).keys == ("train/0", "train/1", "train/2", "train/3")
    assert cityscapes(root, "train", classes=top)[0].masks["segmentation"].any()


@pytest.mark.parametrize("count", [19, 7])
def test_a_plain_folder_of_labels_is_told_by_its_values(tmp_path: Path, count: int) -> None:
    root = tree.write_mtan(tmp_path, labels=["label"], plain_classes=count)
    assert int(cityscapes(root, "train", classes=count)[0].targets["segmentation"].max()) == count - 1
    other = 26 - count
    with pytest.raises(SimoError, match=rf"has label/ with {count} classes, and {other} classes were asked for"):
        cityscapes(root, "train", classes=other)


def test_a_class_out_of_range_is_named(mtan: Path) -> None:
    np.save(mtan / "train" / "label_7" / "0.npy", np.full(tree.SIZE, 7))
    with pytest.raises(SimoError, match=r"label_7/0.npy: classes 7 occur, expected 0 to 6, or -1"):
        cityscapes(mtan, "train", classes=7)[0]


def test_parts_are_there_where_somebody_added_them(tmp_path: Path) -> None:
    root = tree.write_mtan(tmp_path, parts_folder=False)
    assert list(cityscapes(root).tasks) == ["segmentation", "disparity"]
    with pytest.raises(SimoError, match=r"no parts: expected .*part_seg/"):
        cityscapes(root, tasks=["parts"])


def test_depth_in_metres_needs_cameras(mtan: Path) -> None:
    with pytest.raises(SimoError, match=r"has no task depth"):
        cityscapes(mtan, tasks=["depth"])


# -- splits -----------------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    root = tree.write_mtan(tmp_path)
    for name in ("image", "depth"):
        (root / "train" / name / "3.npy").rename(root / "train" / name / "10.npy")
    assert cityscapes(root, "train", ["disparity"]).keys == ("train/0", "train/1", "train/2", "train/10")
    assert cityscapes(root, tasks=["disparity"]).keys[-3:] == ("train/10", "val/0", "val/1")


def test_a_partial_copy_gives_both_numbers(mtan: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert cityscapes(mtan, "val").published == 500
    assert "2 of the 500 images" in caplog.text


def permutation(seed: int, count: int) -> list[int]:
    """A permutation by the Mersenne Twister as torch.randperm of 2.x draws it on a CPU, without torch."""
    words = iter(np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32).tolist())
    order = list(range(count))
    for place in range(count - 1):
        other = place + next(words) % (count - place)
        order[place], order[other] = order[other], order[place]
    return order


def test_the_paper_s_split_is_the_one_of_its_seed() -> None:
    order = [f"train/{number}" for number in permutation(42, 2975)]
    assert published("cityscapes", "simo-2504.11268/train") == tuple(order[:2380])
    assert published("cityscapes", "simo-2504.11268/val") == tuple(order[2380:])
    assert published("cityscapes", "simo-2504.11268/test") == tuple(f"val/{number}" for number in range(500))
    assert order[0] == "train/1492"


def test_the_paper_s_split_is_read_where_it_is_there(mtan: Path) -> None:
    lists = {part: published("cityscapes", f"simo-2504.11268/{part}") for part in ("train", "val")}
    for part, listed in lists.items():
        expected = [key for key in listed if key in {f"train/{number}" for number in range(4)}]
        if expected:
            dataset = cityscapes(mtan, f"simo-2504.11268/{part}")
            assert (dataset.keys, dataset.published) == (tuple(expected), len(listed))
    assert cityscapes(mtan, "simo-2504.11268/test").keys == ("val/0", "val/1")


def test_the_paper_s_split_has_no_meaning_for_other_numbers(png: Path) -> None:
    with pytest.raises(SimoError, match=r"numbers that images have in MTAN's .npy archive"):
        cityscapes(png, "simo-2504.11268/val")


def test_numbers_of_our_own_are_told_apart(mtan: Path, caplog: pytest.LogCaptureFixture) -> None:
    cityscapes(mtan, "simo-2504.11268/test")
    assert "not the same" not in caplog.text
    (mtan / "keys.csv").write_text("split,number,key\n", encoding="utf-8")
    cityscapes(mtan, "simo-2504.11268/test")
    assert "as many images, but not the same" in caplog.text


@pytest.mark.parametrize("layout", ["mtan", "png"])
def test_an_unknown_split_lists_the_known_ones(request: pytest.FixtureRequest, layout: str) -> None:
    with pytest.raises(SimoError, match=r"no split 'test'; it has train, val"):
        cityscapes(request.getfixturevalue(layout), "test")


# -- which layout -----------------------------------------------------------------------------------------------------


def test_two_layouts_in_one_folder_are_an_error_that_names_them(official: Path) -> None:
    tree.write_mtan(official)
    with pytest.raises(SimoError, match=r"layouts official and mtan"):
        cityscapes(official, "val")
    assert cityscapes(official, "val", layout="mtan").keys == ("val/0", "val/1")


def test_a_folder_of_another_kind_tells_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"none of the known layouts of cityscapes. official: .*mtan: .*png"):
        cityscapes(tmp_path)
    with pytest.raises(SimoError, match=r"does not exist"):
        cityscapes(tmp_path / "nowhere")
    with pytest.raises(SimoError, match=r"no images in"):
        cityscapes(tmp_path, layout="png")


def test_the_arrays_of_nyuv2_are_not_taken_for_streets(mtan: Path) -> None:
    for split in ("train", "val"):
        (mtan / split / "normal").mkdir()
    with pytest.raises(SimoError, match=r"none of the known layouts"):
        cityscapes(mtan)


# -- files that are not as they should be -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "label_19", "part_seg", "depth"])
def test_a_damaged_array_is_named(mtan: Path, name: str) -> None:
    tree.damage(mtan / "train" / name / "2.npy")
    with pytest.raises(SimoError, match=rf"{name}/2.npy cannot be read"):
        cityscapes(mtan, "train")[2]


@pytest.mark.parametrize("name", ["image/2.png", "seg/2.png", "part_seg/2.tif", "depth/2.png"])
def test_a_damaged_picture_is_named(png: Path, name: str) -> None:
    tree.damage(png / "train" / name)
    with pytest.raises(SimoError, match=rf"{name} cannot be read"):
        cityscapes(png, "train")[2]


def test_a_missing_file_is_named(png: Path) -> None:
    (png / "train" / "part_seg" / "1.tif").unlink()
    with pytest.raises(SimoError, match=r"part_seg/1.tif does not exist: 1 of 4 images"):
        cityscapes(png, "train")


def test_disparity_in_another_unit_is_refused(mtan: Path) -> None:
    np.save(mtan / "train" / "depth" / "0.npy", np.full((*tree.SIZE, 1), 126.0))
    with pytest.raises(SimoError, match=r"depth/0.npy: a disparity of 126, expected p / 65535"):
        cityscapes(mtan, "train")[0]


def test_an_interpolated_disparity_keeps_its_value(mtan: Path) -> None:
    values = np.full((*tree.SIZE, 1), 1000.4 / 65535)
    values[0, :2, 0] = 0.0, 0.3 / 65535
    np.save(mtan / "train" / "depth" / "0.npy", values)
    sample = cityscapes(mtan, "train", ["disparity"])[0]
    assert sample.targets["disparity"][0, 1, 1] == pytest.approx(999.4 / 256, rel=1e-5)
    assert sample.targets["disparity"][0, 0, 1] == 0.0
    assert sample.masks["disparity"][0, :2].tolist() == [False, True]


def test_8_bit_disparity_is_refused(png: Path) -> None:
    Image.fromarray(np.full(tree.SIZE, 9, np.uint8)).save(png / "train" / "depth" / "0.png")
    with pytest.raises(SimoError, match=r"depth/0.png: the file has 8-bit values.*expected 16-bit"):
        cityscapes(png, "train")[0]


@pytest.mark.parametrize(("option", "text"), [({"classes": 13}, "19 classes or 7"), ({"disparity": "m"}, "task depth")])
def test_an_option_out_of_range_is_an_error(mtan: Path, option: dict[str, object], text: str) -> None:
    with pytest.raises(SimoError, match=text):
        cityscapes(mtan, **option)


# -- for who checks the files ----------------------------------------------------------------------------------------


def test_the_splits_that_mean_something_are_listed(official: Path, mtan: Path, png: Path) -> None:
    paper = tuple(f"simo-2504.11268/{part}" for part in ("train", "val", "test"))
    assert cityscapes(official).source.splits() == ("train", "val")
    assert cityscapes(mtan).source.splits() == ("train", "val", *paper)
    assert cityscapes(png).source.splits() == ("train", "val")
    (mtan / "keys.csv").write_text("split,number,key\n", encoding="utf-8")
    assert cityscapes(mtan).source.splits() == ("train", "val")


@pytest.mark.parametrize(
    ("layout", "types"),
    [
        ("official", ["uint8", "int32", "uint16"]),
        ("png", ["uint8", "int32", "uint16"]),
        ("mtan", ["float64", "int64", "float32"]),
    ],
)
def test_stored_numbers_are_shown_as_they_lie_there(
    request: pytest.FixtureRequest, layout: str, types: list[str]
) -> None:
    source = cityscapes(request.getfixturevalue(layout)).source
    key = source.split("train").keys[0]
    assert [str(source.stored(task, key).dtype) for task in TASKS] == types
    assert source.stored("disparity", key).reshape(tree.SIZE)[0, 1] * (65535 if layout == "mtan" else 1) == 1
