"""Reading: images and labels become samples, and sentinels become masks."""

from __future__ import annotations

from simo_merge.data.cityscapes import cityscapes
from simo_merge.data.derived import DERIVED
from simo_merge.data.folder import IMAGE_SUFFIXES, FolderDataset, FolderSource, ImageFolder
from simo_merge.data.layouts import Layout, detect
from simo_merge.data.nyuv2 import nyuv2
from simo_merge.data.open import FORMATS, open_dataset, parse_spec
from simo_merge.data.reading import read_image, resize_longer_side
from simo_merge.data.resize import resize
from simo_merge.data.rooms import ROOMS_SPLITS, ROOMS_TASKS, find_rooms, rooms
from simo_merge.data.sample import Batch, DenseDataset, Sample, collate
from simo_merge.data.size import parse_size
from simo_merge.data.source import Source, SourceDataset, Split
from simo_merge.data.taskonomy import taskonomy
from simo_merge.data.transforms import Augmentation

__all__ = [
    "DERIVED",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "ROOMS_SPLITS",
    "ROOMS_TASKS",
    "Augmentation",
    "Batch",
    "DenseDataset",
    "FolderDataset",
    "FolderSource",
    "ImageFolder",
    "Layout",
    "Sample",
    "Source",
    "SourceDataset",
    "Split",
    "cityscapes",
    "collate",
    "detect",
    "find_rooms",
    "nyuv2",
    "open_dataset",
    "parse_size",
    "parse_spec",
    "read_image",
    "resize",
    "resize_longer_side",
    "rooms",
    "taskonomy",
]
