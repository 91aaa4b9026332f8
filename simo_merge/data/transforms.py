"""Augmentation for training: geometry by our own rules, pixels by albumentations.

albumentations neither negates the x of normals when it mirrors nor rescales depth when it zooms, so the
geometry is done here, on image, targets and masks alike.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.derived import DERIVED
from simo_merge.data.sample import Sample
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Disparity, Normals, Task

Tasks = Mapping[str, Task]


class Augmentation:
    """Zoom, mirror and colour jitter of one sample; all chance comes from the generator that is passed.

    Targets that are computed from the image alone (texture edges, keypoints, reconstruction) are computed
    again from the augmented image, jitter included: so they stay exact for what the model sees, and
    reconstruction does not ask it to guess a jitter. All other targets move with the pixels.

    Args:
        tasks: The data set's tasks: how a target changes depends on its kind.
        flip: Probability of mirroring left and right.
        scales: Zoom factors, at least 1, one of which is drawn (MTAN's are 1, 1.2 and 1.5).
        jitter: Strength of the colour jitter: brightness, contrast and saturation by a factor within
            1 +- jitter, hue by jitter / 10 of a turn. 0 leaves the colours alone.

    Raises:
        SimoError: a probability, scale or strength out of range.
    """

    def __init__(
        self,
        tasks: Tasks,
        flip: float = 0.5,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        jitter: float = 0.2,
    ) -> None:
        if not 0 <= flip <= 1:
            raise SimoError(f"flip is {flip}, expected a probability from 0 to 1")
        if not scales or not all(1 <= scale < math.inf for scale in scales):
            raise SimoError(f"scales are {list(scales)}, expected one or more numbers of at least 1")
        if not 0 <= jitter < 1:
            raise SimoError(f"jitter is {jitter}, expected a number from 0 to less than 1")
        self.tasks = dict(tasks)
        self.flip = flip
        self.scales = tuple(scales)
        self._jitter = _colour_jitter(jitter) if jitter else None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, augmented. The same `rng` state gives the same result.

        Raises:
            SimoError: the sample has a target of a task that was not given.
        """
        scale = float(rng.choice(self.scales))
        top, left = rng.random(), rng.random()
        mirrored = rng.random() < self.flip
        seed = int(rng.integers(2**31))
        if scale > 1:
            sample = zoom(sample, self.tasks, scale, top, left)
        if mirrored:
            sample = flip(sample, self.tasks)
        if self._jitter is not None:
            self._jitter.set_random_seed(seed)
            pixels = sample.image.permute(1, 2, 0).contiguous().numpy()
            jittered = torch.from_numpy(np.ascontiguousarray(self._jitter(image=pixels)["image"]))
            sample = replace(sample, image=jittered.permute(2, 0, 1).contiguous().clamp(0, 1))
        return _recompute(sample, self.tasks)


def flip(sample: Sample, tasks: Tasks) -> Sample:
    """Mirror left and right. Normals' x, which points to the right, changes its sign.

    Raises:
        SimoError: the sample has a target of a task that was not given.
    """
    targets = {}
    for name, target in sample.targets.items():
        mirrored = target.flip(-1)
        if isinstance(_task(tasks, name), Normals):
            mirrored = torch.cat([-mirrored[:1], mirrored[1:]])
        targets[name] = mirrored
    masks = {name: mask.flip(-1) for name, mask in sample.masks.items()}
    return replace(sample, image=sample.image.flip(-1), targets=targets, masks=masks)


def zoom(sample: Sample, tasks: Tasks, scale: float, top: float = 0.5, left: float = 0.5) -> Sample:
    """Cut out a window 1 / `scale` as high and wide and enlarge it to the sample's size.

    The image is interpolated bilinearly; labels and masks take the nearest pixel, so no label is invented.
    **Depth is divided by the scale and disparity multiplied**, because the image looks closer: through one lens,
    things that are s times as large in the image are s times nearer. All of space shrinks by s alike, hence
    normals stay; they are the normals of the new depth for a camera of s times the focal length.

    Args:
        sample: What to enlarge.
        tasks: Its tasks.
        scale: At least 1. The window has whole pixels; depth is divided by the scale that results from it.
        top: Where the window lies, from 0 (top) to 1 (bottom).
        left: The same from 0 (left) to 1 (right).

    Raises:
        SimoError: the sample has a target of a task that was not given.
    """
    height, width = sample.size
    rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
    y, x = round(top * (height - rows)), round(left * (width - columns))
    exact = math.sqrt(height * width / (rows * columns))

    def enlarged(maps: Tensor, mode: str) -> Tensor:
        """(C, H, W) -> (C, H, W); nearest-exact has its pixel centres where bilinear has, nearest not."""
        window = maps[None, :, y : y + rows, x : x + columns]
        return F.interpolate(window, size=(height, width), mode=mode)[0]

    def label(target: Tensor) -> Tensor:
        planes = target[None] if target.ndim == 2 else target
        # float64 holds every class index; interpolate takes no integers.
        moved = enlarged(planes.double(), "nearest-exact").to(target.dtype)
        return moved[0] if target.ndim == 2 else moved

    targets = {name: _rescaled(_task(tasks, name), label(target), exact) for name, target in sample.targets.items()}
    masks = {name: enlarged(mask[None].float(), "nearest-exact")[0] > 0.5 for name, mask in sample.masks.items()}
    return replace(sample, image=enlarged(sample.image, "bilinear"), targets=targets, masks=masks)


def _rescaled(task: Task, target: Tensor, scale: float) -> Tensor:
    """The target of an image that looks `scale` times closer."""
    if isinstance(task, Depth):
        return target / scale
    return target * scale if isinstance(task, Disparity) else target


def _recompute(sample: Sample, tasks: Tasks) -> Sample:
    """Compute the targets that are functions of the image alone from the image as it is now."""
    targets = dict(sample.targets)
    for name in targets:
        derived = DERIVED.get(name)
        # A data set may have a task of its own of this name, read from files: that one is not equal to ours.
        if derived is not None and derived.source == "image" and _task(tasks, name) == derived.task:
            targets[name] = derived.compute(sample.image, {})[0]
    return replace(sample, targets=targets)


def _task(tasks: Tasks, name: str) -> Task:
    if name not in tasks:
        raise SimoError(f"target {name!r} is of no known task; the augmentation has {', '.join(tasks) or 'none'}")
    return tasks[name]


def _colour_jitter(strength: float) -> Any:
    # albumentations asks its server for a newer version when it is imported, unless this is set.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    factors = (1 - strength, 1 + strength)
    hue = strength / 10
    return albumentations.Compose(
        [albumentations.ColorJitter(brightness=factors, contrast=factors, saturation=factors, hue=(-hue, hue), p=1.0)]
    )
