"""What a data set hands out: one image with its targets and masks, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.tasks import Task


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        image: `(3, H, W)` float32 RGB in [0, 1].
        targets: task name -> tensor. Segmentation `(H, W)` int64 class indices from 0; every other kind
            `(C, H, W)` float32. Values under an unset mask mean nothing (but are finite and in range).
        masks: task name -> `(H, W)` bool, true where the label is valid. Same keys as `targets`.
        key: the image's name in its data set, without suffix.
    """

    image: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    key: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


@dataclass(frozen=True)
class Batch:
    """Samples of one size stacked: `images` (B, 3, H, W), each target and mask with a leading B."""

    images: Tensor
    targets: dict[str, Tensor]
    masks: dict[str, Tensor]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; `self` where everything is there already."""
        if self.images.device == torch.device(device):
            return self
        return Batch(
            images=self.images.to(device),
            targets={name: target.to(device) for name, target in self.targets.items()},
            masks={name: mask.to(device) for name, mask in self.masks.items()},
            keys=self.keys,
        )


@runtime_checkable
class DenseDataset(Protocol):
    """Images with dense labels for one or more tasks; item `i` is the `Sample` of `keys[i]`.

    `tasks` is empty for images without labels (calibration images).
    """

    @property
    def name(self) -> str:
        """Name of the data set; results carry it."""
        ...

    @property
    def split(self) -> str:
        """Name of the split; results carry it."""
        ...

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks that every sample has targets for, by name."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """The images, by name without suffix."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size and one set of tasks.

    Raises:
        SimoError: no samples, images of different sizes, or samples that differ in their tasks.
    """
    if not samples:
        raise SimoError("no samples to put in a batch; expected at least one")
    first = samples[0]
    for other in samples[1:]:
        _check_alike(first, other)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets={name: torch.stack([s.targets[name] for s in samples]) for name in first.targets},
        masks={name: torch.stack([s.masks[name] for s in samples]) for name in first.targets},
        keys=tuple(sample.key for sample in samples),
    )


def _check_alike(first: Sample, other: Sample) -> None:
    if other.size != first.size:
        raise SimoError(
            f"images of one batch differ in size: {first.key!r} is {first.size[0]}x{first.size[1]} and "
            f"{other.key!r} is {other.size[0]}x{other.size[1]} (height x width). Give the data set a size "
            "(size=(H, W), or --size HxW), bring the images to one size, or use a batch size of 1."
        )
    if set(other.targets) != set(first.targets):
        raise SimoError(
            f"samples of one batch differ in their tasks: {first.key!r} has {sorted(first.targets)} and "
            f"{other.key!r} has {sorted(other.targets)}. Read them from one data set."
        )
