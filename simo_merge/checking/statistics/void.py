"""Where the classes of a segmentation have no other label, or are infinitely far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.tasks import Segmentation, Task

Counts = npt.NDArray[np.int64]
_WIDEST = 512


class LabelsByClass:
    """Pixels of each class in which another task has no label, or the value 0.

    Images wider than 1023 are thinned out.

    Attributes:
        segmentation, other: The two tasks.
        pixels: Pixels of each class, (K,).
        missing: Those of them where `other` has no label, (K,).
        zero: Those of them where `other` is valid and exactly 0, (K,).
        missing_in_all: Pixels without a label of `other`, whatever their class.
    """

    def __init__(self, segmentation: Segmentation, other: Task) -> None:
        self.segmentation = segmentation
        self.other = other
        self.pixels: Counts = np.zeros(len(segmentation.classes), dtype=np.int64)
        self.missing: Counts = np.zeros_like(self.pixels)
        self.zero: Counts = np.zeros_like(self.pixels)
        self.missing_in_all = 0

    def add(self, targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        """Count one image."""
        step = max(1, targets[self.segmentation.name].shape[-1] // _WIDEST)
        thin = (..., slice(None, None, step), slice(None, None, step))
        classes, known = targets[self.segmentation.name][thin], masks[self.segmentation.name][thin]
        there = masks[self.other.name][thin]
        zero = there & (targets[self.other.name][thin] == 0).all(dim=0)
        self.missing_in_all += int((~there).sum())
        self.pixels += self._of(classes[known])
        self.missing += self._of(classes[known & ~there])
        self.zero += self._of(classes[known & zero])

    def _of(self, classes: Tensor) -> Counts:
        return np.bincount(classes.numpy(), minlength=len(self.pixels))
