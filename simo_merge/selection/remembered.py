"""A data set that reads every sample once, as far as memory goes."""

from __future__ import annotations

from simo_merge.data import DenseDataset, Sample
from simo_merge.tasks import Task

BUDGET = 2**30
"""Bytes of samples that are kept."""


class Remembered:
    """The same data set; the first samples, up to `budget` bytes, are kept when they have been read."""

    def __init__(self, dataset: DenseDataset, budget: int = BUDGET) -> None:
        self.dataset = dataset
        self._left = budget
        self._kept: dict[int, Sample] = {}

    @property
    def name(self) -> str:
        """The data set's."""
        return self.dataset.name

    @property
    def split(self) -> str:
        """The data set's."""
        return self.dataset.split

    @property
    def tasks(self) -> dict[str, Task]:
        """The data set's."""
        return self.dataset.tasks

    @property
    def keys(self) -> tuple[str, ...]:
        """The data set's."""
        return self.dataset.keys

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self.dataset[index]
        tensors = (sample.image, *sample.targets.values(), *sample.masks.values())
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size <= self._left:
            self._left -= size
            self._kept[index] = sample
        return sample
