"""Folders described by dataset.yaml: pairing, splits and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data import DenseDataset, FolderDataset, ImageFolder, collate
from simo_merge.errors import SimoError

Write = Callable[..., Path]
Split = Callable[[Path, str, list[str]], None]


def depth(millimetres: int) -> np.ndarray:
    return np.full((4, 6), millimetres, np.uint16)


def test_files_are_paired_by_key_whatever_their_order(write: Write, split: Split) -> None:
    root = write({"b": {"depth": depth(2000)}, "a10": {"depth": depth(10000)}, "a9": {"depth": depth(9000)}})
    split(root, "train", ["b", "a9", "a10"])
    dataset = FolderDataset(root, "train")
    assert dataset.keys == ("b", "a9", "a10")
    assert [float(dataset[i].targets["depth"][0, 0, 0]) for i in range(3)] == [2.0, 9.0, 10.0]


def test_without_a_split_every_image_is_taken_in_sorted_order(write: Write) -> None:
    root = write({"zürich/b": {"depth": depth(1)}, "aachen/c": {"depth": depth(1)}})
    dataset = FolderDataset(root)
    assert dataset.keys == ("aachen/c", "zürich/b")
    assert (dataset.name, dataset.split) == ("tiny", "all")


def test_only_the_tasks_asked_for_are_read_in_the_order_asked(write: Write) -> None:
    up = np.full((4, 6, 3), (128, 0, 128), np.uint8)
    root = write({"a": {"depth": depth(1), "normals": up, "segmentation": np.ones((4, 6), np.uint8)}})
    dataset = FolderDataset(root, tasks=["normals", "segmentation"])
    assert list(dataset.tasks) == list(dataset[0].targets) == ["normals", "segmentation"]


def test_derived_tasks_read_what_they_need_and_return_what_was_asked(write: Write) -> None:
    dataset = FolderDataset(write({"a": {"depth": depth(1000)}}), tasks=["occlusion_edges"])
    sample = dataset[0]
    assert list(sample.targets) == ["occlusion_edges"]
    assert not sample.targets["occlusion_edges"].any()


def test_a_derived_task_without_its_source_is_refused(write: Write) -> None:
    with pytest.raises(SimoError, match="'shading' is computed from normals"):
        FolderDataset(write({"a": {"depth": depth(1)}}), tasks=["shading"])


def test_a_missing_label_is_named_before_anything_is_read(write: Write, split: Split) -> None:
    root = write({"a": {"depth": depth(1)}, "b": {}})
    with pytest.raises(SimoError, match=r"depth/b\.png does not exist: 1 of 2 images"):
        FolderDataset(root)
    split(root, "good", ["a"])
    assert len(FolderDataset(root, "good")) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "a"], "key 'a' occurs twice"),
        (["../a"], "leads out of"),
        ([""], "is empty"),
        (["a", "lost"], "for 1 of 2 keys, the first is 'lost'"),
    ],
)
def test_a_wrong_split_file_is_refused(write: Write, split: Split, keys: list[str], message: str) -> None:
    root = write({"a": {"depth": depth(1)}})
    split(root, "train", keys)
    with pytest.raises(SimoError, match=message):
        FolderDataset(root, "train")


def test_an_unknown_split_lists_the_known_ones(write: Write, split: Split) -> None:
    root = write({"a": {"depth": depth(1)}})
    split(root, "train", ["a"])
    for name in ("val", "../gt_sets/train"):
        with pytest.raises(SimoError, match="the splits there are: train"):
            FolderDataset(root, name)


def test_two_images_with_one_key_are_refused(write: Write) -> None:
    root = write({"a": {"depth": depth(1)}})
    Image.new("RGB", (6, 4)).save(root / "images" / "a.jpg")
    with pytest.raises(SimoError, match="have the same key 'a'"):
        FolderDataset(root)


def test_a_task_asked_for_twice_is_refused(write: Write) -> None:
    with pytest.raises(SimoError, match="twice"):
        FolderDataset(write({"a": {"depth": depth(1)}}), tasks=["depth", "depth"])


# -- images alone --------------------------------------------------------------------------------------------


def photos(folder: Path, **sizes: tuple[int, int]) -> Path:
    for name, size in sizes.items():
        Image.new("RGB", size, (255, 0, 0)).save(folder / f"{name}.png")
    return folder


def test_an_image_folder_is_a_data_set_without_tasks(tmp_path: Path) -> None:
    (photos(tmp_path, b=(6, 4), a=(6, 4)) / "notes.txt").write_text("not a picture", encoding="utf-8")
    dataset = ImageFolder(tmp_path)
    assert isinstance(dataset, DenseDataset)
    assert dataset.keys == ("a", "b")
    assert dataset.tasks == dataset[0].targets == {}
    assert dataset[0].image[:, 0, 0].tolist() == [1, 0, 0]


def test_images_of_many_sizes_need_a_size(tmp_path: Path) -> None:
    photos(tmp_path, a=(6, 4), b=(9, 9))
    mixed = ImageFolder(tmp_path)
    with pytest.raises(SimoError, match="size"):
        collate([mixed[0], mixed[1]])
    alike = ImageFolder(tmp_path, size=(8, 10))
    assert collate([alike[0], alike[1]]).images.shape == (2, 3, 8, 10)


def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert ImageFolder(tmp_path)[0].size == (6, 4)


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 255).save(tmp_path / "a.png")
    Image.new("RGBA", (6, 4), (255, 255, 255, 9)).save(tmp_path / "b.png")
    dataset = ImageFolder(tmp_path)
    assert torch.equal(dataset[0].image, torch.ones(3, 4, 6))
    assert torch.equal(dataset[1].image, torch.ones(3, 4, 6))


def test_pictures_of_16_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 3000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SimoError, match=r"a\.png: pixels of type"):
        ImageFolder(tmp_path)[0]


def test_a_folder_without_pictures_or_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="no pictures"):
        ImageFolder(tmp_path)
    with pytest.raises(SimoError, match="is not a folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(SimoError, match="at least 1"):
        ImageFolder(tmp_path, size=(0, 4))
