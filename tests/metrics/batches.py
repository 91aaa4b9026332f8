"""Labels with missing pixels and predictions near them, for every kind of task, as batches of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.metrics import Metric, find_protocol

CLASSES = 4
CHANNELS = {"segmentation": CLASSES, "depth": 1, "disparity": 1, "normals": 3, "regression": 2}
"""Every kind of task, with the channels of its prediction here."""


@dataclass(frozen=True)
class Split:
    """Predictions (N, C, H, W), targets and masks (N, H, W) of N images."""

    prediction: Tensor
    target: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(self), size):
            yield tuple(part[start : start + size] for part in (self.prediction, self.target, self.mask))


def split(kind: str, images: int = 7, seed: int = 0) -> Split:
    """All classes occur; images differ in their share of valid pixels and in their errors, so weights matter."""
    random = torch.Generator().manual_seed(seed)
    size = (images, 6, 8)
    share = torch.linspace(0.15, 0.95, images)[:, None, None]
    mask = torch.rand(size, generator=random) < share
    noise = 0.1 + torch.linspace(0.0, 0.8, images)[:, None, None, None]
    if kind == "segmentation":
        target = torch.randint(0, CLASSES, size, generator=random)
        logits = F.one_hot(target, CLASSES).movedim(-1, 1) + 2 * noise * torch.randn(
            images, CLASSES, 6, 8, generator=random
        )
        return Split(logits, target, mask)
    target = torch.randn(images, CHANNELS[kind], 6, 8, generator=random)
    if kind == "normals":
        target = F.normalize(target, dim=1)
    elif kind != "regression":
        target = target.abs() + 0.3
    prediction = target + noise * torch.randn(target.shape, generator=random)
    if kind == "normals":
        prediction = F.normalize(prediction, dim=1)
    elif kind != "regression":
        prediction = prediction.clamp(min=0.01)
    return Split(prediction, target, mask)


def metric(protocol: str, kind: str) -> Metric:
    return find_protocol(protocol).measure(kind).build(kind, CHANNELS[kind])


def scored(protocol: str, kind: str, data: Split, batch_size: int = 3) -> dict[str, float]:
    found = metric(protocol, kind)
    for batch in data.batches(batch_size):
        found.update(*batch)
    return found.compute()
