"""Copies whose images have numbers: `{train,val}/{modality}/{number}`, keys `train/0`, `train/1`, ..."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from simo_merge.data.cityscapes.layout import DATA, CityscapesLayout
from simo_merge.data.cityscapes.splits import NUMBERED_SPLITS, SIMO_SPLITS, listed
from simo_merge.data.cityscapes.units import PIXELS, DisparityUnit
from simo_merge.data.reading import read_image
from simo_merge.data.source import Split
from simo_merge.data.splits import present, unknown_split
from simo_merge.errors import SimoError


class Numbered(CityscapesLayout):
    """What the two numbered layouts share.

    Attributes:
        suffix: Of the pictures.
    """

    suffix: ClassVar[str]

    def __init__(self, root: Path, classes: int = 19, unit: DisparityUnit = PIXELS) -> None:
        self._keys = tuple(
            f"{split}/{number}" for split in NUMBERED_SPLITS for number in _numbers(root / split / "image", self.suffix)
        )
        super().__init__(root, classes, unit)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether there are numbered pictures with this layout's suffix, and no normals (those are of NYUv2)."""
        return any(
            _numbers(root / split / "image", cls.suffix) and not (root / split / "normal").is_dir()
            for split in NUMBERED_SPLITS
        )

    def offers(self, task: str) -> bool:
        """Whether the folder of a task is there, in either split."""
        return any((self.root / split / name).is_dir() for split in NUMBERED_SPLITS for name in self.folders(task))

    @abstractmethod
    def folders(self, task: str) -> tuple[str, ...]:
        """The names that the folder of a task can have."""

    def splits(self) -> tuple[str, ...]:
        """The splits that have a meaning here."""
        return NUMBERED_SPLITS

    def split(self, name: str | None) -> Split:
        """A published list of numbers, as far as they are there; None takes all, in the order of their numbers."""
        if name is not None and name not in (*NUMBERED_SPLITS, *SIMO_SPLITS):
            raise unknown_split(DATA, name, self.splits())
        if not self._keys:
            raise SimoError(f"no images in {self.root}: expected {{train,val}}/image/{{number}}{self.suffix}")
        return Split("all", self._keys) if name is None else present(DATA, name, listed(name), self._keys)

    def image(self, key: str) -> Tensor:
        """The picture of a key."""
        return read_image(self.file("image", key, self.suffix))

    def file(self, folder: str, key: str, suffix: str) -> Path:
        """`train/7` in folder `depth` -> `root/train/depth/7.npy`."""
        split, number = key.split("/")
        return self.root / split / folder / f"{number}{suffix}"


def _numbers(folder: Path, suffix: str) -> list[int]:
    """The numbers of the files in a folder, sorted as numbers: 10 comes after 9."""
    names = (path.stem for path in folder.glob(f"*{suffix}"))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)
