"""A look at what lies in the files of some labels, before the reader makes them right."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data import FolderSource, Source
from simo_merge.data.labels import ValueLabels
from simo_merge.tasks import Depth, Disparity, Normals, Task

IMAGES = 16
"""Label files of so many images are looked at."""
_SHORTEST = 0.1  # what is shorter has no direction


class StoredStatistics:
    """Types and lengths of the numbers in a task's files.

    Attributes:
        task: The task.
        types: numpy names of the stored types, as `uint16`.
        lengths: Lengths of stored normals that count as directions.
        full: Valid pixels whose stored integer is the largest of its type.
        pixels: Valid pixels looked at.
        declared_bits: What `dataset.yaml` says about the bit depth, where it says something.
        zero_is_invalid: Whether the stored number that means the value 0 is declared invalid, and is not 0 itself.
    """

    def __init__(self, task: Task, source: Source) -> None:
        self.task = task
        self.types: set[str] = set()
        self.lengths: list[npt.NDArray[np.float64]] = []
        self.full = 0
        self.pixels = 0
        labels = source.description.tasks.get(task.name) if isinstance(source, FolderSource) else None
        values = labels if isinstance(labels, ValueLabels) else None
        self.declared_bits = values.bits if values is not None else None
        zero = -values.offset / values.scale if values is not None else 0.0
        self.zero_is_invalid = values is not None and zero != 0 and any(abs(v - zero) < 1e-6 for v in values.invalid)

    def add(self, stored: npt.NDArray[np.generic], mask: Tensor) -> None:
        """Look at one file's numbers, (H, W) or (H, W, C)."""
        self.types.add(str(stored.dtype))
        valid = mask.numpy() if mask.shape == stored.shape[:2] else np.ones(stored.shape[:2], dtype=bool)
        self.pixels += int(valid.sum())
        if stored.dtype.kind == "u":
            top = 2 ** (8 * stored.dtype.itemsize) - 1
            self.full += int(((stored == top).reshape(*valid.shape, -1).all(axis=-1) & valid).sum())
        if isinstance(self.task, Normals) and stored.ndim == 3:
            values = stored[valid].astype(np.float64)[::7]  # (N, 3), thinned out
            vectors = values if stored.dtype.kind == "f" else 2 * values / 255 - 1
            length = np.linalg.norm(vectors, axis=1)
            self.lengths.append(length[length >= _SHORTEST])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0)
        return {
            "types": sorted(self.types),
            "median_length": round(float(np.median(lengths)), 4) if len(lengths) else None,
        }


def looked_into(task: Task) -> bool:
    """Whether the files of a task of this kind tell more than its values."""
    return isinstance(task, Depth | Disparity | Normals)
