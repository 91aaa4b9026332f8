"""NYU Depth V2: indoor photographs with classes, depth and normals, in the forms that people have it in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simo_merge.data.description import FILE_NAME
from simo_merge.data.layouts import detect
from simo_merge.data.nyuv2.extracted import Extracted
from simo_merge.data.nyuv2.layout import NyuLayout
from simo_merge.data.nyuv2.mtan import Mtan
from simo_merge.data.nyuv2.multimae import MultiMae
from simo_merge.data.nyuv2.nyud_mt import NyudMt
from simo_merge.data.nyuv2.official import Official
from simo_merge.data.nyuv2.parquet import Parquet
from simo_merge.data.source import SourceDataset
from simo_merge.errors import SimoError

__all__ = ["NYUV2_LAYOUTS", "NyuLayout", "nyuv2"]

NYUV2_LAYOUTS: tuple[type[NyuLayout], ...] = (Official, Mtan, Parquet, Extracted, NyudMt, MultiMae)
"""The known layouts; `detect` finds which one a folder has."""


def nyuv2(
    root: str | Path,
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
) -> SourceDataset:
    """NYU Depth V2 (Silberman, Hoiem, Kohli and Fergus, ECCV 2012): 1449 labelled indoor photographs.

    Splits: `train` (795) and `test` (654), and in the layouts with MTAN's numbering those of arXiv 2504.11268,
    `simo-2504.11268/train`, `/val`, `/test` (795, 400 and 254). `datasets/nyuv2/README.md` tells more.

    Args:
        root: The folder of the set, or the official `.mat` file.
        split: Name of the split; None takes every image.
        tasks: Of `segmentation`, `depth` (m, along the optical axis), `normals` and `edges`; None takes those that
            the layout has. Those of `simo_merge.data.derived` can be named too.
        layout: Name of one of `NYUV2_LAYOUTS`; None looks which it is.
        size: Height and width to bring images and labels to; None leaves them as they are.
        classes: 13 or 40; None takes what the layout has, 13 where it has both.

    Raises:
        SimoError: nothing of the kind there, an unknown split, task or layout, or a number of classes that the layout
            does not have.
    """
    folder = Path(root)
    if layout is None and (folder / FILE_NAME).is_file():
        raise SimoError(f"{folder} has a {FILE_NAME}: it is a folder data set; name it folder:{folder}")
    found = detect("nyuv2", folder, NYUV2_LAYOUTS, layout)
    return SourceDataset(found(folder, classes), split, tasks, size)
