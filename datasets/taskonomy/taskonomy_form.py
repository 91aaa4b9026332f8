"""The fast form of Taskonomy: one view at a time, then what describes and proves the whole."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image

from simo_merge.data import Sample, detect, resize
from simo_merge.data.resize import nearest
from simo_merge.data.taskonomy import DOMAINS, TASKONOMY_LAYOUTS, TaskonomySource
from simo_merge.errors import SimoError

MASK = "mask_valid"
SUMS, SETTINGS = "SHA256SUMS", "prepare.json"
LICENCE = "Taskonomy Dataset End User License Agreement: research or education, not for profit, not to be passed on"


@dataclass(frozen=True)
class Job:
    """What is made of which copy; workers get it whole."""

    root: Path
    layout: str
    out: Path
    tasks: tuple[str, ...]
    size: tuple[int, int]
    images: str

    @functools.cached_property
    def source(self) -> TaskonomySource:
        """The copy."""
        return detect("taskonomy", self.root, TASKONOMY_LAYOUTS, self.layout)(self.root, self.tasks)

    @property
    def masked(self) -> bool:
        """Whether a label among those asked for needs a mask."""
        return any(DOMAINS[task].geometric for task in self.tasks)

    @property
    def folders(self) -> dict[str, str]:
        """Folder -> suffix of its files."""
        return {
            "images": f".{self.images}",
            **dict.fromkeys(self.tasks, ".png"),
            **({MASK: ".png"} if self.masked else {}),
        }

    def files(self, key: str) -> dict[str, str]:
        """Folder -> file of a view, inside `out`."""
        return {folder: f"{folder}/{key}{suffix}" for folder, suffix in self.folders.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change from one run to the next."""
        return {"size": "x".join(map(str, self.size)), "tasks": list(self.tasks), "images": self.images}


@dataclass(frozen=True)
class Outcome:
    """What became of one view: the sums of its files, or why there are none."""

    key: str
    sums: Mapping[str, str]
    made: bool = False
    problem: str = ""


def convert(job: Job, key: str) -> Outcome:
    """Write the files of a view, unless all are there, and sum them."""
    files = job.files(key)
    if all((job.out / file).is_file() for file in files.values()):
        return Outcome(key, {file: _sum((job.out / file).read_bytes()) for file in files.values()})
    try:
        pictures = encode(job, key)
    except SimoError as error:
        return Outcome(key, {}, problem=str(error))
    for folder, file in files.items():
        write(job.out / file, pictures[folder])
    return Outcome(key, {file: _sum(pictures[folder]) for folder, file in files.items()}, made=True)


def encode(job: Job, key: str) -> dict[str, bytes]:
    """Folder -> the file of a view. Every label is decoded at its full size first, so that none is wrong unseen.

    Raises:
        SimoError: a file is missing or damaged, or holds what cannot be; it is named.
    """
    image = job.source.image(key)
    full = (int(image.shape[1]), int(image.shape[2]))
    small = resize(Sample(image), job.size).image.permute(1, 2, 0)  # (3, h, w) -> (h, w, 3)
    pictures = {"images": _picture((small * 255).round().numpy().astype(np.uint8), job.images)}
    surface = torch.zeros(full, dtype=torch.bool)
    for task in job.tasks:
        _, valid = job.source.label(task, key, full)
        if DOMAINS[task].geometric:
            # The union serves them all: what one label lacks beyond it, its own sentinel says.
            surface |= valid
        pictures[task] = _picture(_shrink(job.source.stored(task, key), job.size))
    if job.masked:
        pictures[MASK] = _picture(nearest(surface, job.size).numpy().astype(np.uint8) * 255)
    return pictures


def _shrink(stored: npt.NDArray[np.generic], size: tuple[int, int]) -> npt.NDArray[np.generic]:
    """(H, W) or (H, W, C) -> (h, w) or (h, w, C): each pixel the stored number of the nearest one."""
    planes = torch.from_numpy(stored.reshape(*stored.shape[:2], -1).astype(np.float32)).permute(2, 0, 1)  # exact
    small = nearest(planes, size).permute(1, 2, 0).numpy().astype(np.uint16 if stored.itemsize > 1 else np.uint8)
    return small[..., 0] if small.shape[2] == 1 else small


def _picture(numbers: npt.NDArray[np.generic], suffix: str = "png") -> bytes:
    """A PNG (two channels become grey and alpha) or, of colours, a JPEG."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(numbers).save(buffer, "JPEG" if suffix == "jpg" else "PNG", **options)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """All of it or nothing: an interruption leaves no half file under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_sums(out: Path) -> dict[str, str]:
    """File -> sum, from the list of an earlier run, if any."""
    path = out / SUMS
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {file: value for value, _, file in (line.partition("  ") for line in lines)}


def write_sums(out: Path, sums: Mapping[str, str]) -> None:
    """The list, in the form of `sha256sum`, sorted by file."""
    write(out / SUMS, "".join(f"{value}  {file}\n" for file, value in sorted(sums.items())).encode())


def write_description(job: Job) -> None:
    """`dataset.yaml`."""
    tasks = {}
    for task in job.tasks:
        domain = DOMAINS[task]
        labels = domain.labels.model_copy(update={"mask_folder": MASK if domain.geometric else None})
        values = labels.model_dump(mode="json", exclude_defaults=True)
        tasks[task] = {"kind": labels.task(task).kind, **values}
    description = {
        "name": "taskonomy",
        "licence": LICENCE,
        "note": f"made by datasets/taskonomy/prepare.py at {job.settings['size']}",
        "camera": "pinhole, field of view differs from view to view; depth is along the optical axis",
        "images": {"folder": "images", "suffix": f".{job.images}"},
        "tasks": tasks,
    }
    write(job.out / "dataset.yaml", yaml.safe_dump(description, sort_keys=False, width=120).encode())


def check_settings(job: Job) -> None:
    """Refuse to mix two sets of options in one folder."""
    path = job.out / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        changed = [name for name, value in job.settings.items() if before.get(name) != value]
        if changed:
            told = "; ".join(f"{name} {before.get(name)}, now {job.settings[name]}" for name in changed)
            raise SimoError(f"{job.out} was prepared with other options ({told}); keep them, or give another folder")
    write(path, (json.dumps(job.settings, indent=2) + "\n").encode())


def check_files(job: Job) -> None:
    """Every file of the list is there, none is there without it, and every folder has as many.

    Raises:
        SimoError: one is missing or unknown; it is named.
    """
    listed = set(read_sums(job.out))
    there = {
        path.relative_to(job.out).as_posix()
        for folder, suffix in job.folders.items()
        for path in (job.out / folder).rglob(f"*{suffix}")
        if not path.name.startswith(".")
    }
    for files, what in ((listed - there, "is in SHA256SUMS and not there"), (there - listed, "is not in SHA256SUMS")):
        if files:
            raise SimoError(f"{job.out / min(files)} {what} ({len(files)} such files); prepare its split again")
    counts = {folder: sum(file.startswith(f"{folder}/") for file in listed) for folder in job.folders}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{folder} {count}" for folder, count in counts.items())
        raise SimoError(f"{job.out}: folders differ in their number of files: {told}; prepare the splits again")
