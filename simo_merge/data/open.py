"""One line of text -> a data set, for the command line and for recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simo_merge.data.folder import FolderDataset, ImageFolder
from simo_merge.data.rooms import rooms
from simo_merge.data.sample import DenseDataset
from simo_merge.errors import SimoError

FORMATS = {
    "rooms": "the embedded rooms, or rooms:DIR for a copy elsewhere",
    "folder": "folder:DIR, or just DIR: images and labels that DIR/dataset.yaml describes",
    "images": "images:DIR: the pictures in a folder, without labels",
}
"""Prefix of a data set's spec -> what it means."""


def open_dataset(spec: str, split: str | None = None, tasks: Sequence[str] | None = None) -> DenseDataset:
    """The data set that `spec` names.

    Args:
        spec: `rooms`, `rooms:DIR`, `folder:DIR`, `DIR` or `images:DIR`.
        split: Name of the split. `images:` has none; for a folder, None takes every image.
        tasks: Names of the tasks to read; None takes those the data set has.

    Raises:
        SimoError: an unknown prefix (the known ones are listed), a missing folder, or an error of the reader.
    """
    prefix, colon, place = spec.partition(":")
    if prefix not in FORMATS and Path(spec).is_dir():
        prefix, colon, place = "folder", ":", spec
    if prefix not in FORMATS or (prefix != "rooms" and not place) or (colon and not place):
        known = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
        raise SimoError(f"data set {spec!r} is neither a folder nor one of the known formats. {known}")
    if prefix == "images":
        if tasks:
            raise SimoError(f"{spec} has images only, and tasks {list(tasks)} need labels; use folder:DIR")
        return ImageFolder(place)
    if prefix == "folder":
        return FolderDataset(place, split, tasks)
    if split is None:
        raise SimoError("the rooms need a split: train, calibration, val or test")
    return rooms(split, tasks, place or None)
