"""Training batches that depend on the seed and the step alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simo_merge.data import Augmentation, Batch, DenseDataset, Sample
from simo_merge.data.loading import load, naming


@dataclass(frozen=True)
class _Epochs:
    """Reads the sample of an (epoch, index) pair; the augmentation is drawn from seed, epoch and index."""

    dataset: DenseDataset
    augmentation: Augmentation | None
    seed: int

    def __call__(self, item: tuple[int, int]) -> Sample:
        epoch, index = item
        with naming(self.dataset, index):
            sample = self.dataset[index]
            if self.augmentation is None:
                return sample
            return self.augmentation(sample, np.random.default_rng([self.seed, epoch, index]))


def schedule(images: int, batch_size: int, steps: int, seed: int) -> list[list[tuple[int, int]]]:
    """The (epoch, index) pairs of every step: a fresh permutation an epoch, batches run on across epochs."""
    pairs: list[tuple[int, int]] = []
    epoch = 0
    while len(pairs) < steps * batch_size:
        order = np.random.default_rng([seed, epoch]).permutation(images)
        pairs.extend((epoch, int(index)) for index in order)
        epoch += 1
    return [pairs[i * batch_size : (i + 1) * batch_size] for i in range(steps)]


def training_batches(
    dataset: DenseDataset,
    augmentation: Augmentation | None,
    batch_size: int,
    steps: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """The batches of steps `start` to `steps`, read ahead by as many processes as `workers`, or by a thread at 0.

    With `rows` only these rows of each batch are read, in their order.

    Raises:
        SimoError: a file that cannot be read, samples that make no batch, or as the augmentation.
        RuntimeError: any other error of the data set or the augmentation; it names the sample.
    """
    remaining = schedule(len(dataset), batch_size, steps, seed)[start:]
    if rows is not None:
        remaining = [[items[row] for row in rows] for items in remaining]
    return load(_Epochs(dataset, augmentation, seed), remaining, workers)
