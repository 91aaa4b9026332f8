"""What the layouts of Cityscapes have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from simo_merge.data.cityscapes.decoding import known_tasks
from simo_merge.data.cityscapes.units import PIXELS, DisparityUnit
from simo_merge.data.labels import SegmentationLabels
from simo_merge.data.layouts import Layout
from simo_merge.data.reading import read_stored

DATA = "cityscapes"
PUBLISHED_COUNTS = {"train": 2975, "val": 500, "test": 1525}
"""How many images each split was published with (cityscapesScripts, README)."""


class CityscapesLayout(Layout):
    """Cityscapes in one of its layouts; its tasks are those whose folders are there.

    Args:
        root: The folder.
        classes: 19, or 7 for the categories.
        unit: Unit in which disparity is handed out.

    Attributes:
        needs: Task -> what lies on disk for it, for error messages.
    """

    name = DATA
    needs: ClassVar[dict[str, str]]

    def __init__(self, root: Path, classes: int = 19, unit: DisparityUnit = PIXELS) -> None:
        self.root = root
        self.classes = classes
        self.unit = unit
        known = known_tasks(classes, unit)
        self.tasks = {name: task for name, task in known.items() if name in self.needs and self.offers(name)}

    @abstractmethod
    def offers(self, task: str) -> bool:
        """Whether the folders of a task are there."""

    @abstractmethod
    def files(self, task: str, key: str) -> tuple[Path, ...]:
        """The files that the label of an image is read from."""

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """The label files that are not there."""
        return [str(path) for key in keys for path in self.files(task, key) if not path.is_file()]

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic] | None:
        """The numbers in the label file of a key; None for depth, which no file holds."""
        return None if task == "depth" else read_stored(self.files(task, key)[0], SegmentationLabels(classes=()))
