"""The classes of NYUv2 as data: 894 labels, their 40 classes, and the 13 that those are grouped into.

The numbers and names are those of mapClass and classMapping13 in github.com/ankurhanda/nyuv2-meta-data (40 classes:
Gupta, Arbelaez and Malik, CVPR 2013; 13 classes: Couprie et al., ICLR 2013). The 40 are drawn in PASCAL VOC's colours
number 1 to 40, the 13 in colours of our own.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.tasks import Segmentation

Ids = npt.NDArray[np.int64]

CLASS_COUNTS = (13, 40)
"""How finely objects can be told apart."""
LABELS = 894
"""Labels of the official file, from 1; 0 is unlabelled."""


@cache
def segmentation(classes: int) -> Segmentation:
    """The task with 13 or 40 classes; class index = the class's number in the tables - 1."""
    rows = _rows(f"classes_{classes}.csv")
    return Segmentation(
        classes=tuple(row["name"] for row in rows),
        palette=tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows),
    )


@cache
def table(stored: int, classes: int) -> Ids:
    """Stored id -> class 1 to `classes`, for ids from 0, which is unlabelled and stays 0.

    Args:
        stored: How many classes the ids tell apart: 894, 40 or 13.
        classes: How many are wanted: 40 or 13, not more than `stored`.
    """
    found = _class_of_label() if stored == LABELS else np.arange(stored + 1)
    if classes < min(stored, 40):
        found = np.array([0, *(int(row["class_13"]) for row in _rows("classes_40.csv"))])[found]
    found.setflags(write=False)  # one array serves all callers
    return found


def read_classes(
    path: Path, ids: Ids, size: tuple[int, int], stored: int, classes: int, first: int = 1, void: int = 0
) -> tuple[Tensor, Tensor]:
    """Stored ids (H, W) -> class indices from 0 and the mask of what is labelled.

    Args:
        path: Where they came from, for messages.
        ids: The numbers as they are stored.
        size: Height and width that they must have, those of the image.
        stored: How many classes they tell apart.
        classes: How many are wanted.
        first: The number of the first class.
        void: The number of what is not labelled.

    Raises:
        SimoError: a number that is no id, or another size.
    """
    if ids.shape != size:
        raise SimoError(f"{path}: the label is {ids.shape} and its image {size} (height, width); expected the same")
    last = first + stored - 1
    labelled = ids != void
    wrong = labelled & ((ids < first) | (ids > last))
    if wrong.any():
        seen = ", ".join(str(value) for value in np.unique(ids[wrong])[:5])
        raise SimoError(
            f"{path}: class ids {seen} occur, expected {first} to {last}, or {void} for unlabelled; "
            "is this of another number of classes, or of another data set?"
        )
    found = table(stored, classes)[np.where(labelled, ids - first + 1, 0)]
    return torch.from_numpy(np.where(labelled, found - 1, 0)), torch.from_numpy(labelled)


def _class_of_label() -> Ids:
    """Label 0 to 894 -> class 0 to 40."""
    lines = _text("classes_894_to_40.txt").splitlines()
    return np.array([0, *(int(word) for line in lines if not line.startswith("#") for word in line.split())])


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))


def _text(name: str) -> str:
    return resources.files("simo_merge.data.nyuv2").joinpath(name).read_text("utf-8")
