"""The pictures that VainF/nyuv2-python-toolkit extracts: `{image,seg13,seg40,depth,normal}/{train,test}/%05d.png`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from torch import Tensor

from simo_merge.data.labels import Labels
from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.layout import FilesLayout
from simo_merge.data.reading import read_ids
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

_LOG = logging.getLogger(__name__)

_PARTS = ("train", "test")
_LABELS: dict[str, Labels] = {"depth": conventions.MILLIMETRES, "normals": conventions.LADICKY}
_VOID = 255
_SAMPLED = 40
"""Pictures of classes that are looked at to see how they number them; one is enough but for the rarest."""


class Extracted(FilesLayout):
    """The official frames as PNG, by their numbers from 1: `image/train/00003.png`.

    Depth is 16-bit millimetres (of the filled-in depth, fractions cut off), 0 for none. Classes are stored from 0,
    with 255 for unlabelled; trees that the toolkit extracted before June 2020 have them from 1 and 0 for unlabelled,
    which is noticed by their values. Normals are those of Ladicky et al., 8 bits.

    Args:
        root: The folder with `image`.
        classes: 13 or 40, of which the folder `seg13` or `seg40` is read; None takes the one that is there.

    Raises:
        SimoError: an image that is in `train` and in `test`, or a folder of classes that is not there.
    """

    layout = "extracted"
    expects = "{image,seg13,seg40,depth,normal}/{train,test}/00003.png and so on"

    def __init__(self, root: Path, classes: int | None = None) -> None:
        there = [count for count in tables.CLASS_COUNTS if (root / f"seg{count}").is_dir()]
        super().__init__(root, classes or (there[0] if there else None))
        if classes is not None and classes not in there:
            raise SimoError(f"{root / f'seg{classes}'} is not a folder; expected it for {classes} classes")
        normals = root / "normal"  # the zip has a folder of its own, which unpacking may leave
        self._normals = normals / "nyu_normals_gt" if (normals / "nyu_normals_gt").is_dir() else normals
        self._folders = {"depth": root / "depth", "normals": self._normals}
        if there:
            self._folders = {"segmentation": root / f"seg{self.classes}", **self._folders}
        self._parts = self._index()
        self._numbering: tuple[int, int] | None = None
        self.tasks: dict[str, Task] = {
            task: tables.segmentation(self.classes) if task == "segmentation" else _LABELS[task].task(task)
            for task, folder in self._folders.items()
            if folder.is_dir()
        }

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """A folder `image` with parts, and labels of the toolkit's names beside it."""
        labels = ("seg13", "seg40", "depth", "normal")
        return any((root / "image" / part).is_dir() for part in _PARTS) and any(
            (root / name / part).is_dir() for name in labels for part in _PARTS
        )

    def available(self) -> Sequence[str]:
        """The frames that have an image, sorted."""
        return sorted(self._parts)

    def image_file(self, key: str) -> Path:
        """The picture of a frame."""
        return self._file(self.root / "image", key)

    def label_file(self, task: str, key: str) -> Path:
        """The label of a frame."""
        return self._file(self._folders[task], key)

    def labels(self, task: str) -> Labels:
        """Millimetres, or Ladicky's normals."""
        return _LABELS[task]

    def read_segmentation(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Classes from 0 and 255 for unlabelled, or in old trees from 1 and 0 for unlabelled."""
        if self._numbering is None:
            self._numbering = self._look()
        first, void = self._numbering
        return tables.read_classes(path, read_ids(path), size, self.classes, self.classes, first, void)

    def _file(self, folder: Path, key: str) -> Path:
        return folder / self._parts[key] / f"{int(key):05d}.png"

    def _index(self) -> dict[str, str]:
        """Key -> the part whose folder has its image."""
        parts: dict[str, str] = {}
        for part in _PARTS:
            for path in (self.root / "image" / part).glob("*.png"):
                if not path.stem.isdecimal():
                    continue
                key = f"{int(path.stem):04d}"
                if key in parts:
                    raise SimoError(f"{path}: this frame is in {' and in '.join(_PARTS)}; keep one of the two")
                parts[key] = part
        return parts

    def _look(self) -> tuple[int, int]:
        """Numbers of the first class and of what is not labelled: 0 and 255, or in old trees 1 and 0.

        All but a few pictures have unlabelled pixels, so 255 soon turns up where it is in use; where it is not, the
        number of the last class does.
        """
        folder = self._folders["segmentation"]
        paths = islice((self._file(folder, key) for key in self.available()), _SAMPLED)
        for path in (path for path in paths if path.is_file()):
            ids = read_ids(path)
            if (ids == _VOID).any():
                return 0, _VOID
            if (ids == self.classes).any():
                _LOG.info("%s: classes from 1, with 0 for unlabelled, as the toolkit wrote them until 2020", folder)
                return 1, 0
        raise SimoError(
            f"{folder}: neither 255 (unlabelled) nor {self.classes} (the last class, in trees from before June 2020) "
            "occurs, so it cannot be told whether classes count from 0 or from 1; extract them again"
        )
