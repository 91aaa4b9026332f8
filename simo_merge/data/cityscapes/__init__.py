"""Cityscapes (Cordts et al., CVPR 2016): streets with classes, parts of humans and vehicles, disparity and depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simo_merge.data.cityscapes.layout import DATA, CityscapesLayout
from simo_merge.data.cityscapes.mtan import Mtan
from simo_merge.data.cityscapes.official import Official
from simo_merge.data.cityscapes.png import Png
from simo_merge.data.cityscapes.units import parse_unit
from simo_merge.data.layouts import detect
from simo_merge.data.source import SourceDataset
from simo_merge.errors import SimoError

__all__ = ["CITYSCAPES_LAYOUTS", "CityscapesLayout", "Mtan", "Official", "Png", "cityscapes"]

CITYSCAPES_LAYOUTS: tuple[type[CityscapesLayout], ...] = (Official, Mtan, Png)
"""The layouts that are recognised."""


def cityscapes(
    root: str | Path,
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    classes: int = 19,
    disparity: str = "px@2048",
) -> SourceDataset:
    """Cityscapes from a folder in any of `CITYSCAPES_LAYOUTS`.

    Args:
        root: The folder.
        split: `train` (2975 images), `val` (500) or, in the published layout, `test` (1525 without classes and parts);
            in MTAN's arrays also `simo-2504.11268/train`, `/val` and `/test` (2380, 595, 500). None: train and val.
        tasks: `segmentation`, `parts` (background and nine parts of humans and vehicles), `disparity`, and, in the
            published layout, `depth` in metres through each image's camera; and those of `simo_merge.data.derived`.
            None takes all whose files are there.
        layout: `official`, `mtan` or `png`; None finds out.
        size: Height and width to bring images and labels to; None leaves them as they are. No disparity changes: its
            unit says the width that it counts in.
        classes: 19, or 7 for the categories.
        disparity: Unit of the disparity: `px@WIDTH`, pixels in an image that wide, or `published`, MTAN's p / 65535.
            A disparity of 0 px is infinitely far and valid; depth is masked there.

    Raises:
        SimoError: no such folder, none or several of the layouts, an unknown split, task or unit, or labels that are
            missing or of another number of classes.
    """
    found = detect(DATA, Path(root), CITYSCAPES_LAYOUTS, layout)
    source = found(Path(root), classes, parse_unit(disparity))
    for task in tasks or ():
        if task in source.needs and task not in source.tasks:
            raise SimoError(f"{root} has no {task}: expected {source.needs[task]} there (layout {source.layout})")
    return SourceDataset(source, split, tasks, size)
