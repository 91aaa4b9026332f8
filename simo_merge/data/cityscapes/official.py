"""Cityscapes as it is published: `{type}/{split}/{city}/{city}_{sequence}_{frame}_{type}`, paired by that name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.data.cityscapes.decoding import (
    read_camera,
    read_disparity_picture,
    read_label_ids,
    read_part_uids,
)
from simo_merge.data.cityscapes.layout import DATA, PUBLISHED_COUNTS, CityscapesLayout
from simo_merge.data.cityscapes.splits import SIMO_SPLITS, not_numbered
from simo_merge.data.cityscapes.units import PIXELS, DisparityUnit
from simo_merge.data.reading import read_image
from simo_merge.data.source import Split
from simo_merge.data.splits import unknown_split
from simo_merge.errors import SimoError

_PICTURE = "_leftImg8bit.png"
_ARCHIVES = {
    "leftImg8bit": "leftImg8bit_trainvaltest",
    "gtFine": "gtFine_trainvaltest",
    "gtFinePanopticParts": "gtFinePanopticParts_trainval",
    "disparity": "disparity_trainvaltest",
    "camera": "camera_trainvaltest",
}
_TYPES = {
    "segmentation": ("gtFine",),
    "parts": ("gtFinePanopticParts",),
    "disparity": ("disparity",),
    "depth": ("disparity", "camera"),
}
_SUFFIXES = {
    "gtFine": "_gtFine_labelIds.png",
    "gtFinePanopticParts": "_gtFinePanopticParts.tif",
    "disparity": "_disparity.png",
    "camera": "_camera.json",
}
_WITHHELD = ("segmentation", "parts")


class Official(CityscapesLayout):
    """The published archives, unpacked side by side, or each into a folder of its own name.

    A key is `{city}/{city}_{sequence}_{frame}`, as in `aachen/aachen_000000_000019`; cities come in alphabetical order,
    and no file is paired by its place in a listing. All splits together (split None) are train and val.
    """

    layout = "official"
    expects = "leftImg8bit/{train,val,test}/{city}/{city}_{sequence}_{frame}_leftImg8bit.png, gtFine/, disparity/, ..."
    needs: ClassVar[dict[str, str]] = {
        "segmentation": "gtFine/ (gtFine_trainvaltest.zip)",
        "parts": "gtFinePanopticParts/ (Cityscapes Panoptic Parts, gtFinePanopticParts_trainval.zip)",
        "disparity": "disparity/ (disparity_trainvaltest.zip)",
        "depth": "disparity/ and camera/ (disparity_trainvaltest.zip, camera_trainvaltest.zip)",
    }

    def __init__(self, root: Path, classes: int = 19, unit: DisparityUnit = PIXELS) -> None:
        self._folders = {kind: _folder(root, kind) for kind in _ARCHIVES}
        self._keys = {split: _keys(self._folders["leftImg8bit"] / split) for split in PUBLISHED_COUNTS}
        self._split_of = {key: split for split, keys in self._keys.items() for key in keys}
        super().__init__(root, classes, unit)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether there is a folder leftImg8bit with one of the splits."""
        return any((_folder(root, "leftImg8bit") / split).is_dir() for split in PUBLISHED_COUNTS)

    def offers(self, task: str) -> bool:
        """Whether the folders of a task are there."""
        return all(self._folders[kind].is_dir() for kind in _TYPES[task])

    def splits(self) -> tuple[str, ...]:
        """train and val, and test where its pictures are there."""
        return tuple(split for split, keys in self._keys.items() if keys or split != "test")

    def split(self, name: str | None) -> Split:
        """train, val or test, sorted by key; the lists are what is there, their published lengths are known."""
        if name in SIMO_SPLITS:
            raise not_numbered(name, self.layout)
        if name is not None and name not in PUBLISHED_COUNTS:
            raise unknown_split(DATA, name, tuple(PUBLISHED_COUNTS))
        keys = self._keys["train"] + self._keys["val"] if name is None else self._keys[name]
        if not keys:
            where = self._folders["leftImg8bit"] / (name or "{train,val}")
            raise SimoError(f"no images in {where}: expected {{city}}/{{city}}_{{sequence}}_{{frame}}{_PICTURE}")
        return Split(name or "all", keys, None if name is None else PUBLISHED_COUNTS[name])

    def image(self, key: str) -> Tensor:
        """The left picture of a key."""
        return read_image(self._file("leftImg8bit", key, _PICTURE))

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a key; depth is masked where disparity says infinity."""
        files = self.files(task, key)
        if task == "segmentation":
            return read_label_ids(files[0], size, self.classes)
        if task == "parts":
            return read_part_uids(files[0], size)
        if task == "disparity":
            return read_disparity_picture(files[0], size, self.unit)
        disparity, valid = read_disparity_picture(files[0], size, PIXELS)
        finite = valid & (disparity[0] > 0)
        return torch.where(finite, read_camera(files[1]).depth(disparity), 0.0), finite

    def files(self, task: str, key: str) -> tuple[Path, ...]:
        """The label file of a key; for depth, disparity and camera."""
        return tuple(self._file(kind, key, _SUFFIXES[kind]) for kind in _TYPES[task])

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """The label files that are not there.

        Raises:
            SimoError: classes or parts of the test split, which are withheld: the files there are dummies.
        """
        if task in _WITHHELD and any(self._split_of.get(key) == "test" for key in keys):
            raise SimoError(
                f"{self.root}: the labels of Cityscapes' test split are withheld and gtFine/test holds dummies, so "
                f"there is no {task}; use split val, or ask for other tasks (tasks=[] for the pictures alone)"
            )
        return super().missing(task, keys)

    def _file(self, kind: str, key: str, suffix: str) -> Path:
        return self._folders[kind] / self._split_of[key] / f"{key}{suffix}"


def _folder(root: Path, kind: str) -> Path:
    """Where files of a type are: beside those of the others, or in a folder that is named like their archive."""
    apart = root / _ARCHIVES[kind] / kind
    return apart if apart.is_dir() and not (root / kind).is_dir() else root / kind


def _keys(split: Path) -> tuple[str, ...]:
    """`{city}/{name}` of every picture, sorted: the order of a folder's listing depends on the file system."""
    pictures = split.glob(f"*/*{_PICTURE}")
    return tuple(sorted(f"{path.parent.name}/{path.name.removesuffix(_PICTURE)}" for path in pictures))
