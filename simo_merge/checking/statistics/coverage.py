"""What every kind of label has: pixels, and whether they are valid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from simo_merge.tasks import Task


class TaskStatistics(ABC):
    """Counts of one task's labels.

    Attributes:
        task: The task.
        images: Label maps seen.
        pixels: Their pixels.
        valid: Those of them that have a label.
        empty: Keys of images without a valid pixel.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.images = 0
        self.pixels = 0
        self.valid = 0
        self.empty: list[str] = []

    @property
    def valid_share(self) -> float:
        """Share of pixels that have a label; 0 where there are no pixels."""
        return self.valid / max(self.pixels, 1)

    def add(self, target: Tensor, mask: Tensor, key: str) -> None:
        """Count one label map and its mask (H, W)."""
        valid = int(mask.sum())
        self.images += 1
        self.pixels += mask.numel()
        self.valid += valid
        if valid:
            self._count(target, mask)
        else:
            self.empty.append(key)

    @abstractmethod
    def _count(self, target: Tensor, mask: Tensor) -> None:
        """Count a map with at least one valid pixel."""

    @abstractmethod
    def _numbers(self) -> dict[str, Any]:
        """What this kind of label adds to the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.task.kind,
            "pixels": self.pixels,
            "valid_share": round(self.valid_share, 6),
            "images_without_label": len(self.empty),
            **self._numbers(),
        }
