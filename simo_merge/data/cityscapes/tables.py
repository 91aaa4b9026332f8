"""The classes of Cityscapes as data: which label id belongs to which class, and in which colour it is drawn.

`labels.csv` has the facts of cityscapesScripts' `helpers/labels.py` (Cordts et al., CVPR 2016); `parts.csv` the
grouping of Cityscapes Panoptic Parts' 23 part classes (arXiv 2004.07944) into nine, as in auto-lambda's loader, with
colours of our own.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

from simo_merge.errors import SimoError

Ids = npt.NDArray[np.int64]
Colour = tuple[int, int, int]

CLASS_COUNTS = (19, 7)
"""How finely the streets can be told apart: classes by their train id, or the categories that they belong to."""
VOID = -1
"""In a lookup table: no class."""
UNKNOWN = -2
"""In a lookup table: an id that no label has."""
BYTES = 256
_SID_PIDS = 10_000


@dataclass(frozen=True)
class Label:
    """One kind of thing that was annotated.

    Attributes:
        id: The number in `*_gtFine_labelIds.png`; the licence plate's -1 is 255 there, if it is drawn at all.
        name: As in the data set's own table.
        train_id: Index among the 19 classes; 255 or -1 for none.
        category_id, category: Void is 0, flat 1, construction 2, object 3, nature 4, sky 5, human 6, vehicle 7.
        ignored: Whether the benchmark passes over pixels of this label.
        colour: 8-bit RGB.
    """

    id: int
    name: str
    train_id: int
    category_id: int
    category: str
    ignored: bool
    colour: Colour


@dataclass(frozen=True)
class Class:
    """One class of a task: its name and its 8-bit RGB colour."""

    name: str
    colour: Colour


@cache
def labels() -> tuple[Label, ...]:
    """Every label, in the order of the data set's own table."""
    return tuple(
        Label(
            id=int(row["id"]),
            name=row["name"],
            train_id=int(row["train_id"]),
            category_id=int(row["category_id"]),
            category=row["category"],
            ignored=row["ignored"] == "1",
            colour=_colour(row),
        )
        for row in _rows("labels.csv")
    )


@cache
def classes(count: int) -> tuple[Class, ...]:
    """The 19 classes by train id, or the 7 categories by category id - 1, each in its first class's colour.

    Raises:
        SimoError: another count.
    """
    named: dict[int, Class] = {}
    for label in _evaluated(count):
        named.setdefault(_index(label, count), Class(label.name if count == 19 else label.category, label.colour))
    return tuple(named[index] for index in range(count))


@cache
def class_of_id(count: int) -> Ids:
    """Label id -> class index, 256 entries; `VOID` where the benchmark ignores the label, else `UNKNOWN`.

    A label is void among the categories when it is among the classes, as in the benchmark's own score for categories:
    a caravan is no vehicle there.

    Raises:
        SimoError: another count than 19 or 7.
    """
    table = np.full(BYTES, UNKNOWN, dtype=np.int64)
    for label in labels():
        table[label.id % BYTES] = VOID
    for label in _evaluated(count):
        table[label.id] = _index(label, count)
    table.setflags(write=False)
    return table


@cache
def category_of_class() -> Ids:
    """Index among the 19 classes -> index among the 7 categories."""
    table = np.empty(19, dtype=np.int64)
    for label in _evaluated(19):
        table[label.train_id] = label.category_id - 1
    table.setflags(write=False)
    return table


@cache
def parts() -> tuple[Class, ...]:
    """Background, four parts of humans and five of vehicles."""
    return tuple(Class(row["name"], _colour(row)) for row in _rows("parts.csv"))


@cache
def part_of_sid_pid() -> Ids:
    """Semantic id · 100 + part id -> index of the part, 10,000 entries; 0 (background) for all that has none."""
    table = np.zeros(_SID_PIDS, dtype=np.int64)
    for row in _rows("parts.csv"):
        for member in row["members"].split():
            table[int(member)] = int(row["index"])
    table.setflags(write=False)
    return table


def _evaluated(count: int) -> list[Label]:
    if count not in CLASS_COUNTS:
        raise SimoError(f"Cityscapes has 19 classes or 7 categories, not {count}; expected classes=19 or classes=7")
    return [label for label in labels() if not label.ignored]


def _index(label: Label, count: int) -> int:
    return label.train_id if count == 19 else label.category_id - 1


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("simo_merge.data.cityscapes").joinpath(name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _colour(row: dict[str, str]) -> Colour:
    return int(row["red"]), int(row["green"]), int(row["blue"])
