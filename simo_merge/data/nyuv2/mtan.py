"""MTAN's arrays: `{train,val}/{image,label,depth,normal}/{i}.npy`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from simo_merge.data.labels import Labels
from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.layout import PAPER_SPLITS, SPLITS, FilesLayout, mtan_split
from simo_merge.data.reading import read_ids
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

FOLDERS = {"segmentation": "label", "depth": "depth", "normals": "normal"}
"""Task -> the folder of its files."""
_LABELS: dict[str, Labels] = {"depth": conventions.METRES, "normals": conventions.EIGEN}
_PARTS = ("train", "val")
_OF_CITYSCAPES = ("label_7", "label_19", "part_seg")
_NEAREST = 0.6  # metres: published depths begin at 0.7, and MTAN's Cityscapes has fractions up to 0.5 in such a folder
PREPARED = "frames.csv"
"""In a tree that `datasets/nyuv2/prepare.py` wrote: which number is which frame of the official file."""


class Mtan(FilesLayout):
    """The arrays that MTAN published and much of the field trains on: 288 x 384, 13 classes.

    `image` (H, W, 3) fractions in [0, 1], `label` (H, W) 0 to 12 with -1 for unlabelled, `depth` (H, W, 1) metres
    with 0 for none, `normal` (H, W, 3) with a zero vector for none; any type of number. Keys are `train/17` and
    `val/3`, where `val` is MTAN's name for the 654 *test* images.

    Args:
        root: The folder with `train` and `val`, or one of the two.
        classes: 13.

    Raises:
        SimoError: another number of classes.
    """

    layout = "mtan"
    expects = "{train,val}/{image,label,depth,normal}/0.npy and so on"
    class_counts = (13,)

    def __init__(self, root: Path, classes: int | None = None) -> None:
        super().__init__(root, classes)
        parts = [root / part for part in _PARTS if (root / part).is_dir()]
        every: dict[str, Task] = {
            "segmentation": tables.segmentation(13),
            "depth": conventions.METRES.task("depth"),
            "normals": conventions.EIGEN.task("normals"),
        }
        there = {task for task, folder in FOLDERS.items() if any((part / folder).is_dir() for part in parts)}
        self.tasks: dict[str, Task] = {name: task for name, task in every.items() if name in there}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Folders of images with arrays named by number, and no folder that MTAN's Cityscapes alone has."""
        if any((root / part / folder).is_dir() for part in _PARTS for folder in _OF_CITYSCAPES):
            return False
        return any(numbered(root / part / "image") for part in _PARTS)

    def available(self) -> Sequence[str]:
        """The images that are there, `train` before `val`, by number."""
        return [f"{part}/{index}" for part in _PARTS for index in numbered(self.root / part / "image")]

    def splits(self) -> tuple[str, ...]:
        """The official ones, and in MTAN's own files the paper's."""
        return SPLITS if self._prepared() else (*SPLITS, *PAPER_SPLITS)

    def listed(self, name: str) -> tuple[str, ...]:
        """MTAN's lists, and the paper's draw from them."""
        if name in PAPER_SPLITS and self._prepared():
            raise SimoError(
                f"split {name!r} of nyuv2 is drawn from MTAN's own numbers of the images. {self.root} was prepared "
                "from another form of the set, whose order need not be MTAN's; take MTAN's files for it"
            )
        return mtan_split(name)

    def image_file(self, key: str) -> Path:
        """The picture of a key."""
        return self._file("image", key)

    def label_file(self, task: str, key: str) -> Path:
        """The label of a key."""
        return self._file(FOLDERS[task], key)

    def labels(self, task: str) -> Labels:
        """Metres, or Eigen's normals."""
        return _LABELS[task]

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a key's file."""
        target, mask = super().label(task, key, size)
        largest = float(target[:, mask].max()) if task == "depth" and mask.any() else _NEAREST
        if largest < _NEAREST:
            raise SimoError(
                f"{self.label_file(task, key)}: the largest depth is {largest:.3g}, expected metres from 0.7; is this "
                f"MTAN's Cityscapes? That is cityscapes:{self.root}"
            )
        return target, mask

    def read_segmentation(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes 0 to 12; -1 is unlabelled."""
        return tables.read_classes(path, read_ids(path), size, 13, 13, first=0, void=-1)

    def _prepared(self) -> bool:
        """Whether the images have numbers of our own."""
        return (self.root / PREPARED).is_file()

    def _file(self, folder: str, key: str) -> Path:
        part, _, index = key.partition("/")
        return self.root / part / folder / f"{index}.npy"


def numbered(folder: Path) -> list[int]:
    """The numbers that files `17.npy` in a folder are named by, in order; other names are passed over."""
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.glob("*.npy") if path.stem.isdecimal())
