"""How often each class occurs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.checking.statistics.coverage import TaskStatistics
from simo_merge.tasks import Segmentation


class ClassStatistics(TaskStatistics):
    """Pixels of each class, and images in which it occurs.

    Attributes:
        counts: Pixels of each class, (K,).
        occurs: Images in which each class has a pixel, (K,).
    """

    task: Segmentation

    def __init__(self, task: Segmentation) -> None:
        super().__init__(task)
        self.counts: npt.NDArray[np.int64] = np.zeros(len(task.classes), dtype=np.int64)
        self.occurs: npt.NDArray[np.int64] = np.zeros(len(task.classes), dtype=np.int64)

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class in the valid pixels, (K,)."""
        return np.asarray(self.counts / max(self.valid, 1), dtype=np.float64)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without a pixel."""
        return tuple(name for name, count in zip(self.task.classes, self.counts, strict=True) if count == 0)

    def _count(self, target: Tensor, mask: Tensor) -> None:
        counts = np.bincount(target[mask].numpy(), minlength=len(self.counts))
        self.counts += counts
        self.occurs += counts > 0

    def _numbers(self) -> dict[str, Any]:
        pixels = {name: int(count) for name, count in zip(self.task.classes, self.counts, strict=True)}
        return {"class_pixels": pixels, "absent_classes": list(self.absent)}
