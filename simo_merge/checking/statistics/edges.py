"""Do labels lie on their own image? Their edges should meet its edges, and not those of other images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data import Sample
from simo_merge.data.derived import texture_edges
from simo_merge.data.resize import nearest
from simo_merge.tasks import Depth, Disparity, Normals, Segmentation, Task

IMAGES = 64
"""So many images are compared with each other."""
RUN = 8
"""They are taken in runs of neighbours: labels that are off by one have their image among these."""
_LONGER_SIDE = 96
_FEWEST = 30  # edge pixels that a label map needs to be compared
_DENSEST = 0.5  # share of edge pixels up to which they are outlines of something


def chosen(indices: list[int]) -> set[int]:
    """Up to `IMAGES` of the indices, in evenly spaced runs of `RUN` neighbours."""
    if len(indices) <= IMAGES:
        return set(indices)
    runs = IMAGES // RUN
    starts = [round(run * (len(indices) - RUN) / (runs - 1)) for run in range(runs)]
    return {indices[start + offset] for start in starts for offset in range(RUN)}


@dataclass(frozen=True)
class Fit:
    """How well labels fit their own images, against those of other images.

    Attributes:
        images: How many were compared.
        z: Mean score of the own images in standard errors of the mean score of wrong ones.
        own: For each label map, the score of its own image in standard deviations of the wrong ones.
        better: Label's key -> key of another image that it clearly fits, while it does not fit its own.
    """

    images: int
    z: float
    own: tuple[float, ...]
    better: dict[str, str]


class EdgeStatistics:
    """Edges of some images and of their labels, thinned out to 96 pixels.

    The score of label map i on image j is the mean strength of j's edges at i's edges. Some maps have edges where
    most images have some, and some images have edges everywhere, so the means of rows and columns are subtracted.
    """

    def __init__(self, tasks: dict[str, Task]) -> None:
        self.tasks = tasks
        self.keys: list[str] = []
        self._grid: tuple[int, int] | None = None
        self._images: list[npt.NDArray[np.float32]] = []
        self._labels: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in tasks}

    def add(self, sample: Sample) -> None:
        """Keep the edges of one sample."""
        if self._grid is None:
            factor = min(1.0, _LONGER_SIDE / max(sample.size))
            self._grid = (max(2, round(sample.size[0] * factor)), max(2, round(sample.size[1] * factor)))
        small = F.interpolate(sample.image[None], size=self._grid, mode="area")[0]
        strength = texture_edges(small, torch.ones(self._grid, dtype=torch.bool))[0]
        # An edge that lies one pixel beside the label's is the same edge.
        self._images.append(F.max_pool2d(strength[None], 3, 1, 1)[0, 0].numpy().ravel())
        for name, task in self.tasks.items():
            target, mask = nearest(sample.targets[name], self._grid), nearest(sample.masks[name], self._grid)
            self._labels[name].append(label_edges(task, target, mask).numpy().ravel())
        self.keys.append(sample.key)

    def fit(self, name: str) -> Fit | None:
        """How well the labels of one task fit; None where there are too few edges to say."""
        labels = np.stack(self._labels[name]).astype(np.float64) if self.keys else np.zeros((0, 1))
        images = np.stack(self._images).astype(np.float64) if self.keys else np.zeros((0, 1))
        usable = (labels.sum(axis=1) >= _FEWEST) & (labels.mean(axis=1) <= _DENSEST) & (images.std(axis=1) > 1e-3)
        if int(usable.sum()) < 3:
            return None
        labels, images = labels[usable], images[usable]
        keys = [key for key, good in zip(self.keys, usable, strict=True) if good]
        images = (images - images.mean(axis=1, keepdims=True)) / images.std(axis=1, keepdims=True)
        scores = (labels / labels.sum(axis=1, keepdims=True)) @ images.T  # (N, N): label map, image
        scores = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
        wrong = scores[~np.eye(len(keys), dtype=bool)]
        # A robust deviation: a label on its right image may be among the wrong ones.
        deviation = max(float(np.median(np.abs(wrong - np.median(wrong)))) * 1.4826, 1e-9)
        own = np.diag(scores) / deviation
        best = scores.argmax(axis=1)
        top = scores.max(axis=1) / deviation
        better = {keys[i]: keys[best[i]] for i in range(len(keys)) if best[i] != i and top[i] > 4 and own[i] < 1}
        return Fit(len(keys), float(own.mean() * math.sqrt(len(keys))), tuple(map(float, own)), better)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fits = {name: self.fit(name) for name in self.tasks}
        return {
            name: None if fit is None else {"images": fit.images, "z": round(fit.z, 2)} for name, fit in fits.items()
        }


def label_edges(task: Task, target: Tensor, mask: Tensor) -> Tensor:
    """Where a label map changes abruptly between neighbours that both have a label: (H, W) bool."""
    edges = torch.zeros(mask.shape, dtype=torch.bool)
    for axis in (-1, -2):
        before, after = target.narrow(axis, 0, target.shape[axis] - 1), target.narrow(axis, 1, target.shape[axis] - 1)
        both = mask.narrow(axis, 0, mask.shape[axis] - 1) & mask.narrow(axis, 1, mask.shape[axis] - 1)
        edges.narrow(axis, 1, mask.shape[axis] - 1).logical_or_(both & _jump(task, before, after))
    if not isinstance(task, Segmentation | Depth | Disparity | Normals) and bool(mask.any()):
        edges &= _steepest(target, mask)
    return edges


def _jump(task: Task, before: Tensor, after: Tensor) -> Tensor:
    if isinstance(task, Segmentation):
        return before != after
    if isinstance(task, Normals):
        return (before * after).sum(dim=0) < 0.9  # 26 degrees
    difference = (after - before).abs()
    if isinstance(task, Depth | Disparity):
        return (difference > 0.08 * torch.maximum(before.abs(), after.abs()).clamp(min=1e-6)).any(dim=0)
    return (difference > 0).any(dim=0)


def _steepest(target: Tensor, mask: Tensor) -> Tensor:
    """The tenth of the valid pixels with the largest change, for maps whose unit says nothing."""
    change = torch.zeros(mask.shape)
    change[:, 1:] += (target[..., 1:] - target[..., :-1]).abs().sum(dim=0)
    change[1:] += (target[:, 1:] - target[:, :-1]).abs().sum(dim=0)
    return change > torch.quantile(change[mask].double(), 0.9)
