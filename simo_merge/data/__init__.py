"""Reading: images and labels become samples, and sentinels become masks."""

from __future__ import annotations

from simo_merge.data.derived import DERIVED
from simo_merge.data.folder import IMAGE_SUFFIXES, FolderDataset, ImageFolder
from simo_merge.data.open import open_dataset
from simo_merge.data.reading import read_image, resize_longer_side
from simo_merge.data.rooms import ROOMS_SPLITS, ROOMS_TASKS, find_rooms, rooms
from simo_merge.data.sample import Batch, DenseDataset, Sample, collate
from simo_merge.data.transforms import Augmentation

__all__ = [
    "DERIVED",
    "IMAGE_SUFFIXES",
    "ROOMS_SPLITS",
    "ROOMS_TASKS",
    "Augmentation",
    "Batch",
    "DenseDataset",
    "FolderDataset",
    "ImageFolder",
    "Sample",
    "collate",
    "find_rooms",
    "open_dataset",
    "read_image",
    "resize_longer_side",
    "rooms",
]
