from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simo_merge.data import FolderDataset, ImageFolder, find_rooms, open_dataset
from simo_merge.errors import SimoError


def test_the_rooms_open_by_name_and_from_a_folder() -> None:
    here = open_dataset("rooms", "val")
    there = open_dataset(f"rooms:{find_rooms()}", "val", ["depth", "keypoints"])
    assert here.keys == there.keys
    assert list(here.tasks) == ["segmentation", "depth", "normals"]
    assert list(there.tasks) == ["depth", "keypoints"]


def test_a_folder_opens_with_and_without_prefix(write: Callable[..., Path]) -> None:
    root = write({"a": {"depth": np.ones((4, 6), np.uint16)}})
    for spec in (str(root), f"folder:{root}"):
        dataset = open_dataset(spec)
        assert isinstance(dataset, FolderDataset)
        assert dataset.keys == ("a",)


def test_images_open_without_labels(write: Callable[..., Path]) -> None:
    root = write({"a": {"depth": np.ones((4, 6), np.uint16)}})
    spec = f"images:{root / 'images'}"
    assert isinstance(open_dataset(spec), ImageFolder)
    with pytest.raises(SimoError, match="images only"):
        open_dataset(spec, tasks=["depth"])


@pytest.mark.parametrize("spec", ["nyu:/data", "no-such-folder", "folder:", "rooms:", "images", ""])
def test_an_unknown_spec_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(SimoError, match=r"rooms: .*folder: .*images: "):
        open_dataset(spec, "train")


def test_the_rooms_need_a_split() -> None:
    with pytest.raises(SimoError, match="need a split: train, calibration, val or test"):
        open_dataset("rooms")
