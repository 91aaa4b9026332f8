"""What `prepare.py` writes: the files of one image of NYUv2 in the folder form or in MTAN's."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checked_folder
import numpy as np
import plane_normals
import torch
from PIL import Image

from simo_merge.data import Sample, parse_size, resize
from simo_merge.data.nyuv2 import NyuLayout
from simo_merge.data.nyuv2.mtan import FOLDERS
from simo_merge.data.nyuv2.official import Official
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Normals, Segmentation, Task

_LOG = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

CROP = (slice(44, 471), slice(40, 601))
"""Rows and columns of a frame that the official toolbox calls valid (`get_projection_mask.m`)."""


@dataclass(frozen=True)
class Settings:
    """What determines the files; a folder holds those of one."""

    source: str
    layout: str
    form: str
    classes: int
    size: str
    crop: bool
    normals: str


@dataclass
class Job:
    """Turns images of a source into files; worker processes are given a copy of it.

    Attributes:
        source: Where images and labels come from.
        out: Where files go.
        settings: What is to be made of them.
        sums: Checksums of an earlier run by file; a file that differs is written again.
    """

    source: NyuLayout
    out: Path
    settings: Settings
    sums: Mapping[str, str] = field(default_factory=dict)

    @property
    def computed(self) -> bool:
        """Whether normals are computed from depth."""
        return self.settings.normals == plane_normals.METHOD

    @property
    def tasks(self) -> dict[str, Task]:
        """What is written beside the images."""
        tasks = {**self.source.tasks, **({"normals": Normals()} if self.computed else {})}
        return tasks if self.settings.form == "folder" else {name: tasks[name] for name in FOLDERS if name in tasks}

    def files(self, name: str) -> dict[str, str]:
        """Modality -> file of an image, inside the folder; `name` is its key, or `train/0` in MTAN's form."""
        if self.settings.form == "folder":
            suffixes = {n: ".png" if isinstance(task, Segmentation) else ".npy" for n, task in self.tasks.items()}
            labels = {task: f"{task}/{name}{suffix}" for task, suffix in suffixes.items()}
            return {"image": f"images/{name}.png", **labels}
        part, _, number = name.partition("/")
        folders = {"image": "image", **{task: FOLDERS[task] for task in self.tasks}}
        return {modality: f"{part}/{folder}/{number}.npy" for modality, folder in folders.items()}

    def convert(self, key: str, name: str) -> tuple[dict[str, str], int]:
        """Write the files of an image that are not there; the checksums of all of its files, and how many it wrote."""
        files = self.files(name)
        sums = {path: value for path in files.values() if (value := self._kept(path)) is not None}
        missing = {modality: path for modality, path in files.items() if path not in sums}
        if missing:
            sample = self.sample(key)
            encode = folder_form if self.settings.form == "folder" else mtan_form
            for modality, path in missing.items():
                content = encoded(encode(sample, modality, self.tasks), Path(path).suffix)
                sums[path] = checked_folder.write(self.out / path, content)
        return sums, len(missing)

    def sample(self, key: str) -> Sample:
        """An image with its labels, cropped and scaled."""
        image = self.source.image(key)
        full = (int(image.shape[1]), int(image.shape[2]))
        read = [name for name in self.tasks if not (self.computed and name == "normals")]
        labels = {name: self.source.label(name, key, full) for name in read}
        if self.computed:
            labels["normals"] = self._computed_normals(key, *labels["depth"])
        targets = {name: labels[name][0] for name in self.tasks}
        sample = Sample(image, targets, {name: labels[name][1] for name in self.tasks}, key)
        if self.settings.crop:
            sample = cropped(sample)
        size = parse_size(self.settings.size) if self.settings.size else sample.size
        return sample if size == sample.size else resize(sample, size)

    def _kept(self, path: str) -> str | None:
        """The checksum of a file from an earlier run, if it is there and is what it was."""
        if not (self.out / path).is_file():
            return None
        value = checked_folder.checksum((self.out / path).read_bytes())
        if self.sums.get(path, value) == value:
            return value
        _LOG.warning("%s is not what %s says; written again", self.out / path, checked_folder.SUMS)
        return None

    def _computed_normals(self, key: str, depth: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = mask.numpy()
        if isinstance(self.source, Official) and self.source.has("rawDepths"):
            known = known & (self.source.frame("rawDepths", key).T > 0)  # what was filled in is no surface
        normals, valid = plane_normals.plane_normals(depth[0].numpy(), known)
        return torch.from_numpy(normals).permute(2, 0, 1).float(), torch.from_numpy(valid)


def cropped(sample: Sample) -> Sample:
    """The part of a whole frame that the sensor saw.

    Raises:
        SimoError: another size than that of a frame.
    """
    if sample.size != plane_normals.FULL:
        height, width = sample.size
        raise SimoError(f"--crop is for whole frames of 480x640; {sample.key} is {height}x{width}; leave it out")
    rows, columns = CROP
    targets = {name: target[..., rows, columns] for name, target in sample.targets.items()}
    masks = {name: mask[rows, columns] for name, mask in sample.masks.items()}
    return Sample(sample.image[:, rows, columns], targets, masks, sample.key)


def folder_form(sample: Sample, modality: str, tasks: Mapping[str, Task]) -> Array:
    """What a file of the folder form holds."""
    if modality == "image":
        return np.asarray((sample.image * 255).round().byte().permute(1, 2, 0))
    target, mask = sample.targets[modality], sample.masks[modality]
    if isinstance(tasks[modality], Segmentation):
        return np.asarray(torch.where(mask, target + 1, 0).byte())
    values = torch.where(mask, target, 0.0)
    if isinstance(tasks[modality], Normals):
        return np.asarray(values.permute(1, 2, 0).half())  # to 0.03 degrees
    return np.asarray(values[0])


def mtan_form(sample: Sample, modality: str, tasks: Mapping[str, Task]) -> Array:
    """What a file of MTAN's form holds."""
    if modality == "image":
        return np.asarray(sample.image.permute(1, 2, 0))
    target, mask = sample.targets[modality], sample.masks[modality]
    if modality == "segmentation":  # not whole numbers by type, for the loaders of that form interpolate them
        return np.asarray(torch.where(mask, target, -1).float())
    if modality == "normals":
        x, y, z = target
        target = torch.stack([x, -z, -y])  # right, away, up
    return np.asarray(torch.where(mask, target, 0.0).permute(1, 2, 0))


def encoded(values: Array, suffix: str) -> bytes:
    """A picture or an array as the bytes of its file."""
    stream = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(values).save(stream, "PNG")
    else:
        np.save(stream, np.ascontiguousarray(values))
    return stream.getvalue()


def description(job: Job) -> dict[str, Any]:
    """What `dataset.yaml` says of the folder form."""
    settings = job.settings
    size = settings.size or "its own size"
    crop = ", cropped to what the sensor saw" if settings.crop else ""
    origin = f"NYU Depth V2 from {settings.source} ({settings.layout}) at {size}{crop}"
    return {
        "name": "nyuv2",
        "licence": "none is stated by the authors; the card in simo_merge's datasets/nyuv2/README.md tells more",
        "note": f"{origin}. Normals: {settings.normals}.",
        "camera": "depth is along the optical axis",
        "images": {"folder": "images", "suffix": ".png"},
        "splits": "gt_sets",
        "tasks": {name: _entry(task) for name, task in job.tasks.items()},
    }


def _entry(task: Task) -> dict[str, Any]:
    if isinstance(task, Segmentation):
        colours = [list(colour) for colour in task.palette or ()]
        ids = {"first_class": 1, "invalid": [0]}
        return {"kind": "segmentation", **ids, "classes": list(task.classes), "colours": colours}
    if isinstance(task, Normals):
        return {"kind": "normals", "suffix": ".npy", "axes": ["right", "down", "viewer"]}
    if isinstance(task, Depth):
        return {"kind": "depth", "suffix": ".npy", "unit": task.unit, "invalid": [0], "typical": task.scale}
    return {"kind": "regression", "suffix": ".npy", "value_range": [0.0, 1.0]}
