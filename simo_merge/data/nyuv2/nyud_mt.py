"""NYUD-MT as ASTMT, MTL-PyTorch and InvPT have it: one folder a task, files told apart by suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data.description import FILE_NAME
from simo_merge.data.folder import read_split
from simo_merge.data.labels import Labels
from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.layout import TEST, TRAIN, FilesLayout
from simo_merge.data.nyuv2.matlab import load_matlab
from simo_merge.data.reading import read_ids
from simo_merge.data.source import Split
from simo_merge.data.splits import present
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

FOLDERS = {"segmentation": "segmentation", "depth": "depth", "normals": "normals", "edges": "edge"}
"""Task -> the folder of its files."""
IMAGE_SUFFIXES = (".jpg", ".png")
SUFFIXES = {
    "segmentation": (".png", ".mat"),
    "depth": (".npy", ".mat"),
    "normals": (".npy", ".png", ".jpg"),
    "edges": (".npy", ".png"),
}
"""Task -> the suffixes that one of the variants has. Arrays hold the numbers themselves, pictures are 8-bit: an edge is
255, a normal 2 x / 255 - 1. MATLAB files have a variable `segmentation` or `depth`."""
_LISTS = {"train": ("train", TRAIN), "test": ("val", TEST)}
"""Split -> its list in `gt_sets`, and how many images it has: what is called val there are the test images."""
_LABELS: dict[str, Labels] = {"depth": conventions.METRES, "normals": conventions.NYUD_MT}


class NyudMt(FilesLayout):
    """`images`, `segmentation`, `depth`, `normals`, `edge` and `gt_sets`: 40 classes, and edges between instances.

    Classes are stored from 1 with 0 for background, which is read as unlabelled, as all but ASTMT itself do (it counted
    background as a 41st class). Depth is metres with 0 for none; a normal of length 0 is none. Keys are the files'
    names.

    Args:
        root: The folder with `images` and `gt_sets`.
        classes: 40 (the default), or 13 to have them grouped.

    Raises:
        SimoError: a folder with files of several suffixes.
    """

    layout = "nyud-mt"
    expects = "images, segmentation, depth, normals, edge and gt_sets/{train,val}.txt"
    class_counts = (40, 13)

    def __init__(self, root: Path, classes: int | None = None) -> None:
        super().__init__(root, classes)
        self._image_suffix = _suffix(root / "images", IMAGE_SUFFIXES)
        found = {task: _suffix(root / folder, SUFFIXES[task]) for task, folder in FOLDERS.items()}
        self._suffixes = {task: suffix for task, suffix in found.items() if suffix is not None}
        self.tasks: dict[str, Task] = {
            task: tables.segmentation(self.classes) if task == "segmentation" else self.labels(task).task(task)
            for task in self._suffixes
        }

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Those folders, and no `dataset.yaml`, with which it is a folder data set."""
        folders = (root / "images", root / "gt_sets")
        return all(folder.is_dir() for folder in folders) and not (root / FILE_NAME).exists()

    def available(self) -> Sequence[str]:
        """The images that are there, sorted."""
        if self._image_suffix is None:
            return []
        names = (path.stem for path in (self.root / "images").glob(f"*{self._image_suffix}"))
        return sorted(name for name in names if not name.startswith("."))

    def split(self, name: str | None) -> Split:
        """`train` (795), or `test` (654), whose list is called val in `gt_sets`."""
        if name is None or name not in _LISTS:
            return super().split(name)
        found = present(self.name, name, self.listed(name), self.available())
        return Split(name, found.keys, _LISTS[name][1])

    def listed(self, name: str) -> tuple[str, ...]:
        """The keys in `gt_sets`."""
        if name not in _LISTS:
            return super().listed(name)
        return read_split(self.root / "gt_sets", _LISTS[name][0])

    def image_file(self, key: str) -> Path:
        """The picture of a key."""
        return self.root / "images" / f"{key}{self._image_suffix}"

    def label_file(self, task: str, key: str) -> Path:
        """The label of a key."""
        return self.root / FOLDERS[task] / f"{key}{self._suffixes[task]}"

    def labels(self, task: str) -> Labels:
        """Metres, normals, or edges by their suffix."""
        if task == "edges":
            return conventions.EDGES if self._suffixes[task] == ".npy" else conventions.EDGES_8BIT
        return _LABELS[task]

    def read_segmentation(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes 1 to 40; 0 is background and counts as unlabelled."""
        ids = _variable(path, "segmentation").astype(np.int64) if path.suffix == ".mat" else read_ids(path)
        return tables.read_classes(path, ids, size, 40, self.classes)

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic]:
        """The numbers in a key's file."""
        path = self.label_file(task, key)
        return _variable(path, task) if path.suffix == ".mat" else super().stored(task, key)


def _suffix(folder: Path, known: Sequence[str]) -> str | None:
    """The suffix of the files in a folder, of those that are known; None where there are none."""
    if not folder.is_dir():
        return None
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = sorted({path.suffix for path in names} & set(known))
    if len(found) > 1:
        raise SimoError(f"{folder} has files of the kinds {' and '.join(found)}; keep one kind, so that it is clear")
    return found[0] if found else None


def _variable(path: Path, name: str) -> npt.NDArray[np.generic]:
    stored = load_matlab(path)
    values = np.asarray(stored.get(name))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        have = ", ".join(key for key in stored if not key.startswith("__"))
        raise SimoError(f"{path}: expected a variable {name} with numbers (H, W); it has {have or 'none'}")
    return values
