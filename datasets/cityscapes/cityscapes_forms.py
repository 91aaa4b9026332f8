"""What prepare.py writes for one picture of Cityscapes, and the files that say how to read it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from simo_merge.data import Sample, SourceDataset
from simo_merge.data.cityscapes import cityscapes
from simo_merge.data.cityscapes.mtan import KEYS_FILE
from simo_merge.data.cityscapes.tables import category_of_class
from simo_merge.data.cityscapes.units import LARGEST, PIXELS, TYPICAL_DEPTH, parse_unit
from simo_merge.errors import SimoError
from simo_merge.tasks import Segmentation, Task

VOID = 255
TASKS = {"folder": ("segmentation", "parts", "disparity", "depth"), "mtan": ("segmentation", "parts", "disparity")}
"""Form -> the tasks that it can hold."""
ARRAYS = {"segmentation": ("label_19", "label_7"), "parts": ("part_seg",), "disparity": ("depth",)}
"""Task -> the folders of MTAN's layout."""


@dataclass(frozen=True)
class Job:
    """What is to be made of what."""

    root: Path
    out: Path
    form: str
    size: tuple[int, int]
    classes: int
    unit: str
    tasks: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What all files in the folder must have in common, as JSON gives it back."""
        values = json.loads(json.dumps(asdict(self), default=str))
        return {name: value for name, value in values.items() if name not in ("root", "out")}


@cache
def source(job: Job, split: str) -> SourceDataset:
    """The published pictures of a split, at the size that is written; a process opens them once."""
    torch.set_num_threads(1)
    logging.getLogger("simo_merge").setLevel(logging.ERROR)  # the summary tells how many images are there
    return cityscapes(job.root, split, job.tasks, layout="official", size=job.size, classes=job.classes)


def names(job: Job, split: str, number: int, key: str) -> list[str]:
    """The files that belong to a picture."""
    if job.form == "mtan":
        folders = ["image", *(folder for task in job.tasks for folder in ARRAYS[task])]
        return [f"{split}/{folder}/{number}.npy" for folder in folders]
    return [f"images/{key}.png", *(f"{task}/{key}{'.npy' if task == 'depth' else '.png'}" for task in job.tasks)]


def produce(job: Job, split: str, number: int, known: dict[str, str]) -> tuple[dict[str, str], int, int]:
    """Make the files of a picture, unless all are there and agree with `known`, their SHA-256 from before.

    Returns:
        Name -> SHA-256, how many files were kept, and how many differed from `known`.
    """
    dataset = source(job, split)
    wanted = names(job, split, number, dataset.keys[number])
    there = {name: _sum((job.out / name).read_bytes()) for name in known if (job.out / name).is_file()}
    differ = sum(known[name] != found for name, found in there.items())
    if len(there) == len(wanted) and not differ:
        return there, len(there), 0
    made = _arrays(job, dataset[number]) if job.form == "mtan" else _pictures(job, dataset[number], dataset.tasks)
    sums = {}
    for name, content in zip(wanted, made, strict=True):
        buffer = io.BytesIO()
        if isinstance(content, Image.Image):
            content.save(buffer, format="PNG")
        else:
            np.save(buffer, content)
        write(job.out / name, buffer.getvalue())
        sums[name] = _sum(buffer.getvalue())
    return sums, 0, differ


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is complete when it appears under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


# -- what is in the files -------------------------------------------------------------------------------------------


def _pictures(job: Job, sample: Sample, tasks: dict[str, Task]) -> Iterator[Image.Image | np.ndarray]:
    """The contents of a picture's files in the form `folder`, in the order of `names`."""
    yield Image.fromarray(_bytes(sample))
    for name, task in tasks.items():
        values, mask = sample.targets[name].numpy(), sample.masks[name].numpy()
        if isinstance(task, Segmentation):
            picture = Image.fromarray(np.where(mask, values, VOID).astype(np.uint8))
            picture.putpalette([value for colour in task.colours for value in colour])  # for the eye
            yield picture
        elif name == "depth":
            yield np.where(mask, values[0], 0).astype(np.float32)
        else:
            yield Image.fromarray(_stored(values[0], mask))


def _arrays(job: Job, sample: Sample) -> Iterator[np.ndarray]:
    """The contents of a picture's files in the form `mtan`, in the order of `names`."""
    yield _bytes(sample).astype(np.float32) / np.float32(255)
    for name in job.tasks:
        values, mask = sample.targets[name].numpy(), sample.masks[name].numpy()
        if name == "disparity":
            yield (_stored(values[0], mask) / LARGEST).astype(np.float32)[..., None]
            continue
        yield np.where(mask, values, -1).astype(np.int8)
        if name == "segmentation":
            yield np.where(mask, category_of_class()[values], -1).astype(np.int8)


def _bytes(sample: Sample) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return sample.image.permute(1, 2, 0).mul(255).round().byte().numpy()


def _stored(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Disparity in px@2048 -> the published 16-bit numbers: exact, as (p - 1) / 256 is in 32 bits."""
    return np.where(mask, np.rint(PIXELS.to_stored(pixels.astype(np.float64))), 0).astype(np.uint16)


# -- what says how to read them -------------------------------------------------------------------------------------


def description(job: Job, tasks: dict[str, Task]) -> bytes:
    """The contents of `dataset.yaml`."""
    unit = parse_unit(job.unit)
    entries: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        if isinstance(task, Segmentation):
            colours = [list(colour) for colour in task.colours]
            entries[name] = {"invalid": [VOID], "classes": list(task.classes), "colours": colours}
        elif name == "depth":
            entries[name] = {"suffix": ".npy", "unit": "m", "invalid": [0], "typical": TYPICAL_DEPTH}
        else:
            stored = {"bits": 16, "invalid": [0], "scale": unit.scale, "offset": unit.offset}
            entries[name] = {**stored, "unit": unit.name, "typical": unit.typical}
        entries[name] = {"kind": task.kind, **entries[name]}
    values = {
        "name": "cityscapes",
        "licence": "terms of use of https://www.cityscapes-dataset.com/license/",
        "note": f"prepared from the published files at {job.size[0]} x {job.size[1]} pixels; labels: nearest pixel",
        "images": {"folder": "images", "suffix": ".png"},
        "splits": "gt_sets",
        "tasks": entries,
    }
    return yaml.safe_dump(values, sort_keys=False, width=120, default_flow_style=None).encode()


def number_keys(job: Job, datasets: dict[str, SourceDataset]) -> None:
    """Write down which picture each number is, before the first one is made.

    Raises:
        SimoError: an earlier run numbered other pictures.
    """
    path = job.out / KEYS_FILE
    keys: dict[str, list[str]] = {}
    if path.is_file():
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            keys.setdefault(row["split"], []).append(row["key"])
    for split, dataset in datasets.items():
        if keys.get(split, list(dataset.keys)) != list(dataset.keys):
            raise SimoError(
                f"{path} has {len(keys[split])} pictures of {split}, and the source has {len(dataset)}, or others: "
                "numbers would change their meaning; name a new folder with --out"
            )
        keys[split] = list(dataset.keys)
    lines = [f"{split},{number},{key}" for split, listed in keys.items() for number, key in enumerate(listed)]
    write(path, "\n".join(["split,number,key", *lines, ""]).encode())
