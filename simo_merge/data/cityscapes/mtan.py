"""Cityscapes as MTAN's authors shared it: .npy arrays with numbers for names."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from simo_merge.data.cityscapes import tables
from simo_merge.data.cityscapes.decoding import read_class_array, read_disparity_array
from simo_merge.data.cityscapes.numbered import Numbered
from simo_merge.data.cityscapes.splits import NUMBERED_SPLITS, SIMO_SPLITS
from simo_merge.data.reading import read_ids
from simo_merge.data.source import Split
from simo_merge.errors import SimoError

_LOG = logging.getLogger(__name__)
_PLAIN = "label"
_LOOKED_AT = 20
KEYS_FILE = "keys.csv"
"""Beside the splits in arrays that datasets/cityscapes/prepare.py made: which number is which picture."""


class Mtan(Numbered):
    """MTAN's arrays, 128x256 or 256x512, and what others added to them.

    Segmentation is read from `label_19` or `label_7`, whichever has the classes that were asked for. A folder that is
    plainly called `label` has 19 classes where a value above 6 occurs in its first 20 files, else 7. Parts are read
    from `part_seg`, which is no part of MTAN's archive. The folder `depth` holds disparity, as p / 65535.

    Raises:
        SimoError: when segmentation is asked for: there are labels, but not with that number of classes.
    """

    layout = "mtan"
    expects = "{train,val}/image/{number}.npy, label_19/ or label_7/ or label/, depth/ (disparity), part_seg/"
    suffix = ".npy"
    needs: ClassVar[dict[str, str]] = {
        "segmentation": "{train,val}/label_19/, label_7/ or label/",
        "parts": "{train,val}/part_seg/",
        "disparity": "{train,val}/depth/",
    }

    def folders(self, task: str) -> tuple[str, ...]:
        """The names that the folder of a task can have."""
        if task == "segmentation":
            return (*(f"label_{count}" for count in tables.CLASS_COUNTS), _PLAIN)
        return ("part_seg",) if task == "parts" else ("depth",)

    def splits(self) -> tuple[str, ...]:
        """train, val and, on the published numbers, those of the SIMO paper."""
        return NUMBERED_SPLITS if self._renumbered else (*NUMBERED_SPLITS, *SIMO_SPLITS)

    def split(self, name: str | None) -> Split:
        """A published list of numbers; it is told when numbers are not those of the published archive."""
        found = super().split(name)
        if name in SIMO_SPLITS and self._renumbered:
            _LOG.warning(
                "%s: %s says that these numbers were given by sorting the pictures' names; split %r was drawn on the "
                "numbers of MTAN's archive, so these are as many images, but not the same",
                self.root,
                KEYS_FILE,
                name,
            )
        return found

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a key."""
        file = self.files(task, key)[0]
        if task == "disparity":
            return read_disparity_array(file, size, self.unit)
        return read_class_array(file, size, self.classes if task == "segmentation" else len(tables.parts()))

    def files(self, task: str, key: str) -> tuple[Path, ...]:
        """The label file of a key."""
        folder = self._label_folder if task == "segmentation" else self.folders(task)[0]
        return (self.file(folder, key, self.suffix),)

    @property
    def _renumbered(self) -> bool:
        return (self.root / KEYS_FILE).is_file()

    @cached_property
    def _label_folder(self) -> str:
        """The folder with the classes that were asked for."""
        names = [n for n in self.folders("segmentation") if any((self.root / s / n).is_dir() for s in NUMBERED_SPLITS)]
        counts = {name: self._count(name) for name in names}
        for name, count in counts.items():
            if count == self.classes:
                return name
        there = ", ".join(f"{name}/ with {count} classes" for name, count in counts.items())
        raise SimoError(
            f"{self.root} has {there}, and {self.classes} classes were asked for; ask for classes="
            f"{' or '.join(str(count) for count in sorted(set(counts.values())))}, or add label_{self.classes}/"
        )

    def _count(self, folder: str) -> int:
        if folder != _PLAIN:
            return int(folder.removeprefix("label_"))
        files = (self.file(folder, key, self.suffix) for key in self._keys)
        first = [file for file in files if file.is_file()][:_LOOKED_AT]
        return 19 if any(int(read_ids(file).max()) > 6 for file in first) else 7
