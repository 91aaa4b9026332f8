"""One line of text -> a data set, for the command line and for recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simo_merge.data.cityscapes import cityscapes
from simo_merge.data.folder import FolderDataset, ImageFolder
from simo_merge.data.nyuv2 import nyuv2
from simo_merge.data.rooms import rooms
from simo_merge.data.sample import DenseDataset
from simo_merge.data.size import parse_size
from simo_merge.data.taskonomy import taskonomy
from simo_merge.errors import SimoError

Tasks = Sequence[str] | None


@dataclass(frozen=True)
class Format:
    """A kind of data set that can be named in a line of text.

    Attributes:
        meaning: For people: how it is written.
        open: (place, split, tasks, **options) -> the data set; a place that was not given is "".
        options: Name of each option -> what makes a value of its text.
        needs_place: Whether a path must be given.
    """

    meaning: str
    open: Callable[..., DenseDataset]
    options: dict[str, Callable[[str], Any]]
    needs_place: bool = True


def _rooms(place: str, split: str | None, tasks: Tasks, **options: Any) -> DenseDataset:
    if split is None:
        raise SimoError("the rooms need a split: train, calibration, val or test")
    return rooms(split, tasks, place or None, **options)


def _images(place: str, split: str | None, tasks: Tasks, **options: Any) -> DenseDataset:
    if tasks:
        raise SimoError(f"images:{place} has images only, and tasks {list(tasks)} need labels; use folder:DIR")
    return ImageFolder(place, **options)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise SimoError(f"expected a number of classes, got {text!r}")
    return int(text)


_SIZE: dict[str, Callable[[str], Any]] = {"size": parse_size}
_LAYOUT: dict[str, Callable[[str], Any]] = {"layout": str, **_SIZE}
FORMATS: dict[str, Format] = {
    "rooms": Format("the embedded rooms, or rooms:DIR for a copy elsewhere", _rooms, _SIZE, needs_place=False),
    "folder": Format(
        "folder:DIR, or just DIR: images and labels that DIR/dataset.yaml describes", FolderDataset, _SIZE
    ),
    "nyuv2": Format(
        "nyuv2:DIR (or the official .mat file): NYU Depth V2 in any of its forms",
        nyuv2,
        {**_LAYOUT, "classes": _number},
    ),
    "cityscapes": Format(
        "cityscapes:DIR: Cityscapes, as published or prepared by others",
        cityscapes,
        {**_LAYOUT, "classes": _number, "disparity": str},
    ),
    "taskonomy": Format("taskonomy:DIR: Taskonomy, as its download tools leave it", taskonomy, _LAYOUT),
    "images": Format("images:DIR: the pictures in a folder, without labels", _images, _SIZE),
}
"""Prefix of a data set's spec -> how it is opened."""


@dataclass(frozen=True)
class Spec:
    """The parts of a data set's line of text; `place` is empty where none was given."""

    prefix: str
    place: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The place as a path."""
        return Path(self.place) if self.place else None


def parse_spec(text: str) -> Spec:
    """`nyuv2:/data/nyu?layout=mtan&size=126x168` in its parts.

    A bare path has the prefix `folder`; one that is called like a prefix is written `folder:rooms`.

    Raises:
        SimoError: an option without a value, or one that is given twice.
    """
    if text.partition(":")[0] not in FORMATS and Path(text).is_dir():
        return Spec("folder", text)  # whatever signs its name has
    before, _, query = text.partition("?")
    prefix, _, place = before.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if not value or name in options:
            raise SimoError(f"data set {text!r}: expected each option once, as name=value; got {part!r}")
        options[name] = value
    if prefix not in FORMATS and Path(before).is_dir():
        return Spec("folder", before, options)
    return Spec(prefix, place, options)


def open_dataset(spec: str, split: str | None = None, tasks: Tasks = None) -> DenseDataset:
    """The data set that `spec` names.

    Args:
        spec: `prefix:place`, as `FORMATS` lists them, a bare `DIR` for `folder:DIR`, and after a `?` options:
            `folder:DIR?size=126x168`.
        split: Name of the split; None takes every image, where that makes sense.
        tasks: Names of the tasks to read; None takes those the data set has.

    Raises:
        SimoError: an unknown prefix or option (the known ones are listed), a missing folder, or an error of the
            reader.
    """
    parsed = parse_spec(spec)
    found = FORMATS.get(parsed.prefix)
    if found is None or (found.needs_place and not parsed.place) or spec.endswith(":"):
        known = "; ".join(f"{name}: {format.meaning}" for name, format in FORMATS.items())
        raise SimoError(f"data set {spec!r} is neither a folder nor one of the known formats. {known}")
    unknown = [name for name in parsed.options if name not in found.options]
    if unknown:
        raise SimoError(
            f"data set {spec!r}: unknown option {', '.join(unknown)}; {parsed.prefix} has {', '.join(found.options)}"
        )
    options = {name: found.options[name](value) for name, value in parsed.options.items()}
    return found.open(parsed.place, split, tasks, **options)
