"""The pictures that MultiMAE's `tools/prepare_nyuv2.py` writes: `{train,test}/{rgb,depth,semseg,...}/data/%04d.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from simo_merge.data.labels import Labels
from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.layout import FilesLayout
from simo_merge.data.reading import read_ids
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

_PARTS = ("train", "test")
FOLDERS = {"segmentation": "semseg", "depth": "depth", "normals": "normal"}
"""Task -> the folder of its files."""
_LABELS: dict[str, Labels] = {"depth": conventions.TEN_METRES, "normals": conventions.EIGEN}


class MultiMae(FilesLayout):
    """The official frames as PNG, by their numbers from 0: `train/rgb/data/0002.png` is frame 0003.

    Depth is 16 bits for 10 m; classes are palette pictures, 1 to 40 with 0 for unlabelled; normals and their masks are
    Eigen's.

    Args:
        root: The folder with `train` and `test`.
        classes: 40 (the default), or 13 to have them grouped.
    """

    layout = "multimae"
    expects = "{train,test}/{rgb,depth,semseg,normal,mask}/data/0002.png and so on"
    class_counts = (40, 13)

    def __init__(self, root: Path, classes: int | None = None) -> None:
        super().__init__(root, classes)
        self._parts: dict[str, str] = {}
        for part in _PARTS:
            for path in (root / part / "rgb" / "data").glob("*.png"):
                if not path.stem.isdecimal():
                    continue
                key = f"{int(path.stem) + 1:04d}"
                if key in self._parts:
                    raise SimoError(f"{path}: this frame is in {' and in '.join(_PARTS)}; keep one of the two")
                self._parts[key] = part
        there = [task for task, name in FOLDERS.items() if any((root / part / name).is_dir() for part in _PARTS)]
        self.tasks: dict[str, Task] = {
            task: tables.segmentation(self.classes) if task == "segmentation" else _LABELS[task].task(task)
            for task in there
        }

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """A folder `rgb/data` in one of the parts."""
        return any((root / part / "rgb" / "data").is_dir() for part in _PARTS)

    def available(self) -> Sequence[str]:
        """The frames that have an image, sorted."""
        return sorted(self._parts)

    def image_file(self, key: str) -> Path:
        """The picture of a frame."""
        return self._file("rgb", key)

    def label_file(self, task: str, key: str) -> Path:
        """The label of a frame."""
        return self._file(FOLDERS[task], key)

    def labels(self, task: str) -> Labels:
        """Parts of 10 m, or Eigen's normals."""
        return _LABELS[task]

    def mask_file(self, task: str, key: str) -> Path | None:
        """Where a frame's normals are valid."""
        masks = self.root / self._parts[key] / "mask"
        return self._file("mask", key) if task == "normals" and masks.is_dir() else None

    def read_segmentation(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes 1 to 40; 0 is unlabelled."""
        return tables.read_classes(path, read_ids(path), size, 40, self.classes)

    def _file(self, folder: str, key: str) -> Path:
        return self.root / self._parts[key] / folder / "data" / f"{int(key) - 1:04d}.png"
