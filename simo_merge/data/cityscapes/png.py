"""Cityscapes as auto-lambda's preprocessing writes it: numbered pictures that hold label ids and uids as published."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from simo_merge.data.cityscapes.decoding import read_disparity_picture, read_label_ids, read_part_uids
from simo_merge.data.cityscapes.numbered import Numbered
from simo_merge.data.cityscapes.splits import SIMO_SPLITS, not_numbered
from simo_merge.data.source import Split

_FILES = {"segmentation": ("seg", ".png"), "parts": ("part_seg", ".tif"), "disparity": ("depth", ".png")}


class Png(Numbered):
    """auto-lambda's pictures, 256x512; the stored numbers are those of the published pictures, nearest pixel.

    Its preprocessing numbers images in the order in which the file system lists cities, and each modality by itself. So
    the numbers differ from copy to copy, and no name is left by which the pairing could be checked.
    """

    layout = "png"
    expects = "{train,val}/image/{number}.png, seg/{number}.png, part_seg/{number}.tif, depth/{number}.png (disparity)"
    suffix = ".png"
    needs: ClassVar[dict[str, str]] = {
        "segmentation": "{train,val}/seg/",
        "parts": "{train,val}/part_seg/",
        "disparity": "{train,val}/depth/",
    }

    def folders(self, task: str) -> tuple[str, ...]:
        """The name of the folder of a task."""
        return (_FILES[task][0],)

    def split(self, name: str | None) -> Split:
        """The published numbers; the paper's splits are lists of other numbers."""
        if name in SIMO_SPLITS:
            raise not_numbered(name, self.layout)
        return super().split(name)

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a key."""
        file = self.files(task, key)[0]
        if task == "segmentation":
            return read_label_ids(file, size, self.classes)
        return read_part_uids(file, size) if task == "parts" else read_disparity_picture(file, size, self.unit)

    def files(self, task: str, key: str) -> tuple[Path, ...]:
        """The label file of a key."""
        folder, suffix = _FILES[task]
        return (self.file(folder, key, suffix),)
