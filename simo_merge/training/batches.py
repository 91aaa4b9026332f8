"""Training batches that depend on the seed and the step alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset

from simo_merge.data import Augmentation, Batch, DenseDataset, Sample, collate


class _Epochs(Dataset[Sample]):
    """The data set under (epoch, index) pairs; the augmentation is drawn from seed, epoch and index."""

    def __init__(self, dataset: DenseDataset, augmentation: Augmentation | None, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, index = item
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
) -> Iterator[Batch]:
    """The batches of steps `start` to `steps`.

    workers: loader processes; 0 loads in this one, which is best where the cores are busy with the model.
    """
    remaining = schedule(len(dataset), batch_size, steps, seed)[start:]
    yield from DataLoader(
        _Epochs(dataset, augmentation, seed), batch_sampler=remaining, collate_fn=collate, num_workers=workers
    )
