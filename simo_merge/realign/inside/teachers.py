"""Calibration images for training, augmented, and what the experts give for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from simo_merge.data import Augmentation, DenseDataset, Sample
from simo_merge.data.loading import naming
from simo_merge.device import autocast
from simo_merge.models import Encoder
from simo_merge.realign.realignment import Calibration
from simo_merge.realign.running import Tokens, tokens_of

Item = tuple[int, int | None]
"""Which image, and in which epoch, for its augmentation; None: as it is."""


@dataclass(frozen=True)
class AugmentedReader:
    """Reads images without their labels; the augmentation is drawn from seed, epoch and index."""

    images: DenseDataset
    augmentation: Augmentation | None
    seed: int

    def __call__(self, item: Item) -> Sample:
        """The sample; errors are those of `naming`."""
        index, epoch = item
        with naming(self.images, index):
            sample = replace(self.images[index], targets={}, masks={})
            if self.augmentation is None or epoch is None:
                return sample
            return self.augmentation(sample, np.random.default_rng([self.seed, epoch, index]))


class Teachers:
    """What the experts give for images: their captured features where an image is as it was captured, else a pass.

    Args:
        given: captured features, the experts, and the device.
        tasks: whose experts.
        precision: of the passes.
        runs: whether there will be passes; the experts are copied to the device for them.
    """

    def __init__(self, given: Calibration, tasks: Sequence[str], precision: str, runs: bool) -> None:
        self.features = {task: given.features.experts[task] for task in tasks}
        self.device, self.precision = given.device, precision
        self.encoders = {task: _frozen(given.experts[task].encoder, given.device) for task in tasks if runs}

    def __call__(self, images: Tensor, items: Sequence[Item]) -> dict[str, Tokens]:
        """Patches and prefix tokens of every tap, for each task; images (B, 3, H, W) are those of the items."""
        if self.encoders and any(epoch is not None for _, epoch in items):
            with torch.no_grad(), autocast(self.device, self.precision):
                return {task: tokens_of(encoder(images)) for task, encoder in self.encoders.items()}
        chosen = torch.tensor([index for index, _ in items])
        return {
            task: (
                [p[chosen].to(self.device).float() for p in features.patches],
                [p[chosen].to(self.device).float() for p in features.prefix],
            )
            for task, features in self.features.items()
        }


def _frozen(encoder: Encoder, device: torch.device) -> Encoder:
    return copy.deepcopy(encoder).to(device).eval().requires_grad_(False)
