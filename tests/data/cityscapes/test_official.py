"""The published layout: files paired by name, label ids, panoptic parts, 16-bit disparity, a camera for each image."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data import Sample
from simo_merge.data.cityscapes import cityscapes
from simo_merge.errors import SimoError
from tests.trees import cityscapes as tree


def one(root: Path, key: str = tree.FULL, **options: object) -> Sample:
    """The sample of a key."""
    dataset = cityscapes(root, **options)
    return dataset[dataset.keys.index(key)]


# -- splits and pairing ---------------------------------------------------------------------------------------------


def test_keys_are_sorted_whatever_order_the_cities_were_made_in(official: Path) -> None:
    assert cityscapes(official, "train").keys == tree.TRAIN
    assert cityscapes(official, "val").keys == tree.VAL
    assert cityscapes(official).keys == tree.TRAIN + tree.VAL


def test_every_modality_belongs_to_its_picture(official: Path) -> None:
    dataset = cityscapes(official)
    for key, sample in zip(dataset.keys, dataset, strict=True):
        seen = tree.street(key)
        assert (sample.image.mul(255).round().byte().permute(1, 2, 0).numpy() == seen.image).all(), key
        index = tree.classes(seen.ids, 19)
        assert (sample.masks["segmentation"].numpy() == (index >= 0)).all(), key
        assert (sample.targets["segmentation"].numpy()[index >= 0] == index[index >= 0]).all(), key
        assert (sample.targets["parts"].numpy() == tree.parts(seen.uids)).all(), key
        pixels = (seen.stored.astype(np.float64) - 1) / 256
        assert (sample.targets["disparity"][0].numpy()[seen.stored > 0] == pixels[seen.stored > 0]).all(), key
        finite = seen.stored > 1
        metres = seen.baseline * seen.focal / np.where(finite, pixels, 1)
        assert np.allclose(sample.targets["depth"][0].numpy()[finite], metres[finite], rtol=1e-5), key
        assert (sample.masks["depth"].numpy() == finite).all(), key


def test_a_partial_copy_gives_both_numbers(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dataset = cityscapes(official, "train", ["segmentation"])
    assert dataset.published == 2975
    assert "4 of the 2975 images" in caplog.text
    assert "layout official" in caplog.text


def test_archives_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    root = tree.write_official(tmp_path, apart=True)
    assert (root / "disparity_trainvaltest" / "disparity").is_dir()
    assert cityscapes(root, "val").keys == tree.VAL


def test_test_has_pictures_but_no_classes(tmp_path: Path) -> None:
    root = tree.write_official(tmp_path, splits=("train", "val", "test"))
    assert cityscapes(root, "test", []).keys == tree.TEST
    assert cityscapes(root, "test", []).tasks == {}
    assert cityscapes(root, "test", ["disparity", "texture_edges"])[0].masks["disparity"].any()
    assert cityscapes(root).keys == tree.TRAIN + tree.VAL
    for tasks in (None, ["segmentation"], ["parts"]):
        with pytest.raises(SimoError, match=r"test split are withheld.* dummies.*use split val"):
            cityscapes(root, "test", tasks)


def test_an_unknown_split_lists_the_known_ones(official: Path) -> None:
    with pytest.raises(SimoError, match=r"no split 'training'; it has train, val, test"):
        cityscapes(official, "training")


def test_the_paper_s_split_needs_the_numbers_of_mtan(official: Path) -> None:
    with pytest.raises(SimoError, match=r"numbers that images have in MTAN's .npy archive.*'official'"):
        cityscapes(official, "simo-2504.11268/train")


def test_a_split_without_pictures_is_an_error(official: Path) -> None:
    with pytest.raises(SimoError, match=r"no images in .*leftImg8bit/test"):
        cityscapes(official, "test", [])


# -- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_are_those_whose_folders_are_there(tmp_path: Path) -> None:
    everything = ["segmentation", "parts", "disparity", "depth"]
    assert list(cityscapes(tree.write_official(tmp_path / "a")).tasks) == everything
    few = tree.write_official(tmp_path / "b", types=("leftImg8bit", "gtFine", "disparity"))
    assert list(cityscapes(few).tasks) == ["segmentation", "disparity"]
    with pytest.raises(SimoError, match=r"no depth: expected disparity/ and camera/"):
        cityscapes(few, tasks=["depth"])
    with pytest.raises(SimoError, match=r"no parts: expected gtFinePanopticParts/"):
        cityscapes(few, tasks=["parts"])


def test_void_labels_and_licence_plates_are_masked(official: Path) -> None:
    mask = one(official).masks["segmentation"]
    assert not mask[0, : len(tree.IGNORED)].any()
    assert mask[1, : len(tree.EVALUATED) - 1].all()


def test_a_picture_without_any_label_is_all_masked(official: Path) -> None:
    sample = one(official, tree.VOID)
    for name in ("segmentation", "disparity", "depth"):
        assert not sample.masks[name].any(), name
    assert sample.masks["parts"].all()
    assert sample.targets["parts"].unique().tolist() == [0]


def test_a_class_may_be_absent_everywhere(official: Path) -> None:
    dataset = cityscapes(official, tasks=["segmentation"])
    seen = torch.cat([sample.targets["segmentation"][sample.masks["segmentation"]] for sample in dataset])
    assert 16 not in seen
    assert len(dataset.tasks["segmentation"].classes) == 19
    assert set(seen.tolist()) == set(range(19)) - {16}


def test_seven_categories_merge_the_classes(official: Path) -> None:
    fine, coarse = one(official), one(official, classes=7)
    assert (fine.masks["segmentation"] == coarse.masks["segmentation"]).all()
    expected = tree.classes(tree.street(tree.FULL).ids, 7)
    assert (coarse.targets["segmentation"].numpy()[expected >= 0] == expected[expected >= 0]).all()
    assert one(official, classes=7).targets["segmentation"].max() == 6


def test_stored_0_is_invalid_and_stored_1_is_infinitely_far(official: Path) -> None:
    sample = one(official)
    disparity, valid = sample.targets["disparity"][0, 0], sample.masks["disparity"][0]
    assert valid[: len(tree.STORED)].tolist() == [False, True, True, True, True, True, True]
    assert disparity[1] == 0.0
    assert disparity[2] == 1 / 256
    assert disparity[6] == 65534 / 256
    assert sample.masks["depth"][0, :3].tolist() == [False, False, True]
    assert torch.isfinite(sample.targets["depth"]).all()


@pytest.mark.parametrize(("unit", "scale"), [("px@2048", 1.0), ("px@512", 0.25), ("px@128", 0.0625)])
def test_disparity_comes_in_the_unit_that_was_asked_for(official: Path, unit: str, scale: float) -> None:
    dataset = cityscapes(official, "train", ["disparity"], disparity=unit)
    assert dataset.tasks["disparity"].unit == unit
    assert dataset[0].targets["disparity"][0, 0, 5] == 126.0 * scale
    assert dataset[0].targets["disparity"][0, 0, 1] == 0.0
    assert dataset.tasks["disparity"].scale == pytest.approx(12.0 * scale)


def test_the_published_unit_has_infinity_at_its_smallest_number(official: Path) -> None:
    dataset = cityscapes(official, "train", ["disparity"], disparity="published")
    row = dataset[0].targets["disparity"][0, 0]
    torch.testing.assert_close(row[1:7], torch.tensor(tree.STORED[1:]) / 65535)
    assert dataset.tasks["disparity"].unit == "published"


def test_resizing_changes_no_value(official: Path) -> None:
    whole, half = one(official), one(official, size=(8, 16))
    assert half.image.shape == (3, 8, 16)
    for name in whole.targets:
        assert torch.isin(half.targets[name], whole.targets[name]).all(), name
    assert (half.targets["disparity"] == whole.targets["disparity"][:, 1::2, 1::2]).all()
    assert (half.targets["depth"] == whole.targets["depth"][:, 1::2, 1::2]).all()


def test_depth_does_not_depend_on_the_unit_of_disparity(official: Path) -> None:
    assert torch.equal(one(official).targets["depth"], one(official, disparity="published").targets["depth"])


# -- files that are not as they should be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("leftImg8bit", "leftImg8bit.png"),
        ("gtFine", "gtFine_labelIds.png"),
        ("gtFinePanopticParts", "gtFinePanopticParts.tif"),
        ("disparity", "disparity.png"),
        ("camera", "camera.json"),
    ],
)
def test_a_damaged_file_is_named(official: Path, folder: str, suffix: str) -> None:
    path = tree.damage(official / folder / "train" / f"{tree.TRAIN[2]}_{suffix}")
    with pytest.raises(SimoError, match=rf"{path.name}.* cannot be read"):
        one(official, tree.TRAIN[2])


def test_a_missing_label_is_named_before_any_work(official: Path) -> None:
    (official / "camera" / "val" / f"{tree.VAL[1]}_camera.json").unlink()
    with pytest.raises(SimoError, match=r"munster_000000_000019_camera.json does not exist: 1 of 2 .*'depth'"):
        cityscapes(official, "val")
    assert cityscapes(official, "val", ["disparity"])[1].masks["disparity"].any()


def test_disparity_of_8_bits_is_refused(official: Path) -> None:
    path = official / "disparity" / "train" / f"{tree.FULL}_disparity.png"
    Image.fromarray((tree.street(tree.FULL).stored / 256).astype(np.uint8)).save(path)
    with pytest.raises(SimoError, match=r"_disparity.png: the file has 8-bit values.*expected 16-bit"):
        one(official)


def test_a_label_of_another_size_is_refused(official: Path) -> None:
    path = official / "gtFine" / "train" / f"{tree.FULL}_gtFine_labelIds.png"
    Image.fromarray(tree.street(tree.FULL).ids[:8, :16]).save(path)
    with pytest.raises(SimoError, match=r"_labelIds.png: the label is 8x16 and its image is 16x32"):
        one(official)


def test_instances_in_place_of_label_ids_are_refused(official: Path) -> None:
    path = official / "gtFine" / "train" / f"{tree.FULL}_gtFine_labelIds.png"
    Image.fromarray(np.where(tree.street(tree.FULL).ids == 26, 26004, 40).astype(np.uint16)).save(path)
    with pytest.raises(SimoError, match=r"_labelIds.png: ids 40, 26004 occur, expected label ids 0 to 33"):
        one(official)


def test_what_is_no_uid_is_refused(official: Path) -> None:
    path = official / "gtFinePanopticParts" / "train" / f"{tree.FULL}_gtFinePanopticParts.tif"
    Image.fromarray(np.full(tree.SIZE, 240, np.int32)).save(path)
    with pytest.raises(SimoError, match=r"PanopticParts.tif: ids 240 occur, expected uids"):
        one(official)


@pytest.mark.parametrize("change", [{"baseline": 0.0}, {"baseline": "far"}, {"baseline": None}])
def test_a_camera_without_a_baseline_is_refused(official: Path, change: dict[str, object]) -> None:
    path = official / "camera" / "train" / f"{tree.FULL}_camera.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["extrinsic"] |= change
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(SimoError, match=rf"{path.name}.*baseline"):
        one(official)


def test_it_travels_to_worker_processes(official: Path) -> None:
    dataset = pickle.loads(pickle.dumps(cityscapes(official, "val", disparity="px@512")))
    assert dataset[0].key == tree.VAL[0]
