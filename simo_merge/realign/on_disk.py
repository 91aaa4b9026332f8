"""Captured features in files: what disk they take, which batches are there already, and how they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.data.loading import Reader
from simo_merge.device import resolve_precision
from simo_merge.distributed import rank, world_size
from simo_merge.errors import SimoError
from simo_merge.models import Encoder
from simo_merge.results import replace_text
from simo_merge.scoring import batch_plan
from simo_merge.weights import fingerprint

_LOG = logging.getLogger(__name__)

StoredType = Literal["float32", "float16", "bfloat16"]
TYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
JOURNAL_SECONDS = 5.0
"""A kill costs no more than what was run in so many: each entry waits until the disk has what it speaks of."""


class DiskError(SimoError):
    """A disk that has no room, or may not be written to."""


@dataclass(frozen=True)
class OnDisk:
    """Keep captured features in files of a folder instead of memory.

    folder: it is made; each encoder, list of images, size, precision and type has a folder of its own in it, which is
    found again. dtype: of the files: "float32", as in memory; "bfloat16" and "float16" take half, and round values to
    8 and 11 binary digits: little where a channel varies about 0, much where it varies little about a large mean.
    """

    folder: str | Path
    dtype: StoredType = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in TYPES:
            raise SimoError(f"features are kept as {', '.join(TYPES)}; got {self.dtype!r}")


@dataclass(frozen=True)
class FeatureFile:
    """The file of one encoder's features of N images, and the journal of the batches in it.

    The file holds, tap after tap, patches (N, h*w, C) and prefix tokens (N, P, C). The journal is JSON: what the
    features are of (`key`), and the numbers of finished batches. Each process writes a journal of its own; a batch is
    there if any of them says so.
    """

    folder: Path
    key: dict[str, Any]
    grid: tuple[int, int]
    size: tuple[int, int]
    prefix: int
    channels: tuple[int, ...]
    dtype: torch.dtype
    batches: Sequence[range]

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        images: DenseDataset,
        batch_size: int,
        precision: str,
        keep: OnDisk,
        grid_of: Callable[[tuple[int, int]], tuple[int, int]],
    ) -> FeatureFile:
        """The file that these features have, whether it is there or not; the first image and the last are read.

        grid_of: (H, W) -> (h, w), of the encoder.
        """
        ends = [Reader(images)(index).image for index in (0, len(images) - 1)]
        size = (ends[0].shape[-2], ends[0].shape[-1])
        weights = {**encoder.state_dict(), "mean": encoder.mean, "std": encoder.std}
        key = {
            "encoder": encoder.name,
            "weights": fingerprint(weights),
            "taps": list(encoder.taps),
            "images": [images.name, images.split, len(images), _digest(images.keys)],
            "pixels": fingerprint({"first": ends[0], "last": ends[1]}),  # other pictures may have the same names
            "size": list(size),
            "precision": resolve_precision(precision, next(encoder.parameters()).device),
            "batch_size": batch_size,
            "dtype": keep.dtype,
        }
        folder = Path(keep.folder) / _digest([json.dumps(key, sort_keys=True)])[:16]
        batches = batch_plan(images, batch_size)
        return cls(
            folder, key, grid_of(size), size, encoder.prefix_tokens, encoder.tap_channels, TYPES[keep.dtype], batches
        )

    @property
    def path(self) -> Path:
        """Of the features."""
        return self.folder / "features.bin"

    @property
    def images(self) -> int:
        """N."""
        return self.batches[-1].stop

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Of patches and prefix tokens, tap after tap."""
        patches = math.prod(self.grid)
        return [(self.images, tokens, c) for c in self.channels for tokens in (patches, self.prefix)]

    @property
    def bytes(self) -> int:
        """That the file takes."""
        return sum(math.prod(shape) for shape in self.shapes) * self.dtype.itemsize

    @property
    def missing(self) -> int:
        """Bytes that it will take and does not yet: what was never written of a file takes no disk."""
        if len(self.finished()) == len(self.batches):
            return 0
        taken = 512 * self.path.stat().st_blocks if self.path.is_file() else 0
        return max(0, self.bytes - taken)

    def finished(self) -> set[int]:
        """The numbers of the batches that are there."""
        if not self.path.is_file() or self.path.stat().st_size != self.bytes:
            return set()
        return {number for journal in self._journals() for number in self._entries(journal)}

    def opened(self) -> set[int]:
        """Make the file where there is none, and forget journals of one that is gone; what is `finished`.

        Raises:
            DiskError: the disk refuses.
        """
        if not self.path.is_file() or self.path.stat().st_size != self.bytes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for journal in self._journals():
                    journal.unlink()
                with self.path.open("ab") as file:  # not emptied: another run may be writing the same values
                    file.truncate(self.bytes)
            except OSError as error:
                raise DiskError(
                    f"a file of {self.bytes / 1e9:.3g} GB cannot be made at {self.path}: {error.strerror or error}; "
                    "name a folder that you may write to, on a disk that takes files of this size"
                ) from error
        return self.finished()

    @contextmanager
    def writing(self, done: Iterable[int]) -> Iterator[FeatureWriter]:
        """A writer beside the batches that are there; what it wrote is in the journal behind it, come what may.

        Raises:
            DiskError: the disk refuses.
        """
        try:
            with self.path.open("r+b") as file:
                writer = FeatureWriter(self, file, set(done))
                try:
                    yield writer
                finally:
                    writer.note()
        except OSError as error:
            raise DiskError(
                f"features cannot be written to {self.path}: {error.strerror or error}; what is finished is kept, and "
                "the same call goes on from there"
            ) from error

    def read(self, rows: slice) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Patches and prefix tokens of some images, mapped from the file: read when they are used, and not writable.

        Raises:
            SimoError: batches are missing.
        """
        left = len(self.batches) - len(self.finished())
        if left:
            raise SimoError(
                f"{left} of {len(self.batches)} batches are not in {self.folder}; capture them by the same call, and "
                "where there are several processes give all of them the same folder"
            )
        raw = np.memmap(self.path, np.uint8, "r")
        with warnings.catch_warnings():  # a private copy that could be written would count as memory in use
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            values = torch.from_numpy(raw).view(self.dtype)
        flat = torch.split(values, [math.prod(shape) for shape in self.shapes])
        parts = [part.view(shape)[rows] for part, shape in zip(flat, self.shapes, strict=True)]
        return tuple(parts[0::2]), tuple(parts[1::2])

    def journal(self) -> Path:
        """Of this process."""
        return self.folder / ("journal.json" if world_size() == 1 else f"journal-{rank()}.json")

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob("journal*.json"))

    def _entries(self, journal: Path) -> set[int]:
        try:
            found = json.loads(journal.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        known = isinstance(found, dict) and found.get("key") == self.key
        return set(range(len(self.batches))).intersection(found["finished"]) if known else set()


class FeatureWriter:
    """Writes batches into a `FeatureFile` that is open, and notes them."""

    def __init__(self, whole: FeatureFile, file: BinaryIO, done: set[int]) -> None:
        self.whole, self.file, self.done = whole, file, done
        self.noted, self.last = len(done), time.monotonic()

    def add(self, number: int, parts: Sequence[Tensor]) -> None:
        """Write a batch: patches (n, h*w, C) and prefix tokens (n, P, C) of each tap in turn, of the file's type."""
        start, itemsize = 0, self.whole.dtype.itemsize
        for part, shape in zip(parts, self.whole.shapes, strict=True):
            if part.numel():
                first = self.whole.batches[number].start * math.prod(shape[1:])
                self.file.seek((start + first) * itemsize)
                self.file.write(part.contiguous().view(torch.uint8).numpy().data)
            start += math.prod(shape)
        self.done.add(number)
        if time.monotonic() - self.last >= JOURNAL_SECONDS:
            self.note()

    def note(self) -> None:
        """Enter into the journal what was written; the disk has it then, even where the machine fails.

        Another run may be writing the same features, and this journal with them: what it says is kept.
        """
        if len(self.done) == self.noted:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done |= self.whole.finished()
        entry = {"key": self.whole.key, "batches": len(self.whole.batches), "finished": sorted(self.done)}
        replace_text(self.whole.journal(), json.dumps(entry) + "\n")
        self.noted, self.last = len(self.done), time.monotonic()


def refuse_full_disk(files: Sequence[FeatureFile]) -> None:
    """Refuse, before anything runs, features that the disk has no room for.

    Raises:
        DiskError: it says what they need and what is free, in GB (1e9 bytes).
    """
    folder = files[0].folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(
            f"features cannot be kept in {folder}: {error.strerror or error}; name another folder"
        ) from error
    different = {file.folder: file for file in files}
    needed, encoders = sum(file.missing for file in different.values()), len(different)
    if needed > free:
        smaller = "" if files[0].dtype.itemsize == 2 else "keep them as bfloat16 (half of it), "
        raise DiskError(
            f"features of {files[0].images} images from {encoders} encoder{'s' * (encoders > 1)} need "
            f"{needed / 1e9:.3g} GB more in {folder}, and {free / 1e9:.3g} GB are free; {smaller}take fewer images, "
            "name another folder, or keep none (stream), where the method reads moments alone"
        )
    if needed:
        _LOG.info("features need %.3g GB in %s, where %.3g GB are free", needed / 1e9, folder, free / 1e9)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
