"""What the layouts of NYUv2 share: its name, its classes, and the splits of its two numberings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data.labels import Labels
from simo_merge.data.layouts import Layout
from simo_merge.data.nyuv2 import tables
from simo_merge.data.reading import labels_from_array, read_ids, read_image, read_stored
from simo_merge.data.source import Split
from simo_merge.data.splits import present, published, unknown_split
from simo_merge.errors import SimoError

TRAIN, TEST = 795, 654
"""Images of the official splits."""
SPLITS = ("train", "test")
PAPER_SPLITS = tuple(f"simo-2504.11268/{part}" for part in ("train", "val", "test"))
"""Drawn from MTAN's numbers of the images."""


class NyuLayout(Layout):
    """NYUv2 in one of the ways in which people have it. Keys are the official frame numbers, `0001` to `1449`.

    Args:
        root: The folder, or the file.
        classes: 13 or 40; None takes what the layout has, the fewer of both.

    Raises:
        SimoError: another number of classes, one that the layout does not have, or files that cannot be read.
    """

    name: str = "nyuv2"
    class_counts: ClassVar[tuple[int, ...]] = tables.CLASS_COUNTS

    def __init__(self, root: Path, classes: int | None = None) -> None:
        self.root = root
        if classes is not None and classes not in self.class_counts:
            have = " or ".join(str(count) for count in self.class_counts)
            raise SimoError(f"nyuv2 in the layout {self.layout} has {have} classes, not {classes}")
        self.classes = classes or self.class_counts[0]

    def splits(self) -> tuple[str, ...]:
        """`train` and `test`, and where images have MTAN's numbers, those of arXiv 2504.11268."""
        return SPLITS

    def split(self, name: str | None) -> Split:
        """The images of `train` (795) or `test` (654), or with None every one that is there."""
        available = self.available()
        if name is not None:
            return present(self.name, name, self.listed(name), available)
        if not available:
            raise SimoError(f"{self.root}: no image there; expected {self.expects}")
        return Split("all", tuple(available))

    @abstractmethod
    def available(self) -> Sequence[str]:
        """The keys that have an image, sorted."""

    def listed(self, name: str) -> tuple[str, ...]:
        """The keys that a split has by its published list.

        Raises:
            SimoError: an unknown split, or one that this layout's numbering does not determine.
        """
        if name in SPLITS:
            return published("nyuv2", name)
        if name in PAPER_SPLITS:
            raise SimoError(
                f"split {name!r} of nyuv2 is drawn from MTAN's numbers of the images, and which frame of the official "
                "file has which number was never published; it is there in the layouts mtan and parquet"
            )
        raise _unknown(name, SPLITS)


class FilesLayout(NyuLayout):
    """A layout with one file for each image and label."""

    @abstractmethod
    def image_file(self, key: str) -> Path:
        """The picture of a key."""

    @abstractmethod
    def label_file(self, task: str, key: str) -> Path:
        """The label of a key."""

    @abstractmethod
    def labels(self, task: str) -> Labels:
        """What the label files of a task hold; segmentation excepted."""

    def mask_file(self, task: str, key: str) -> Path | None:
        """The picture that is not zero where the label is valid, if there is one."""
        return None

    @abstractmethod
    def read_segmentation(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Class indices and mask of a file."""

    def image(self, key: str) -> Tensor:
        """The picture of a key."""
        return read_image(self.image_file(key))

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a key's file."""
        path = self.label_file(task, key)
        if task == "segmentation":
            return self.read_segmentation(path, size)
        return labels_from_array(path, self.labels(task), self.stored(task, key), size, self.mask_file(task, key))

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic]:
        """The numbers in a key's file."""
        path = self.label_file(task, key)
        return read_ids(path) if task == "segmentation" else read_stored(path, self.labels(task))

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """Label files that are not there, or where all are, mask files."""
        gone = [path for key in keys if not (path := self.label_file(task, key)).is_file()]
        if not gone:
            masks = (self.mask_file(task, key) for key in keys)
            gone = [path for path in masks if path is not None and not path.is_file()]
        return [str(path) for path in gone]


def mtan_split(name: str) -> tuple[str, ...]:
    """The keys of a split in MTAN's numbering: `train/0` to `train/794`, and `val/0` to `val/653` for the test images.

    Raises:
        SimoError: an unknown split; `val` is one, for the folder of that name holds the test images.
    """
    if name == "train":
        return tuple(f"train/{index}" for index in range(TRAIN))
    if name == "test":
        return tuple(f"val/{index}" for index in range(TEST))
    if name in PAPER_SPLITS:
        return published("nyuv2", name)
    raise _unknown(name, (*SPLITS, *PAPER_SPLITS))


def _unknown(name: str, known: Sequence[str]) -> SimoError:
    if name == "val":
        validation = [other for other in known if other.endswith("/val")]
        instead = f", or {validation[0]!r} for 400 of them" if validation else ""
        return SimoError(
            "nyuv2 has no validation split of its own: what lies in a folder or list named val are its "
            f"{TEST} test images. Say 'test' for those{instead}."
        )
    return unknown_split("nyuv2", name, known)
