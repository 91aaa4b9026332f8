"""Mirror, zoom and crop of a sample: image, targets and masks move together.

albumentations neither negates the x of normals when it mirrors nor rescales depth when it zooms, so the geometry is
done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.resize import nearest
from simo_merge.data.sample import Sample
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Disparity, Normals, Task

Tasks = Mapping[str, Task]


def flip(sample: Sample, tasks: Tasks) -> Sample:
    """Mirror left and right. Normals' x, which points to the right, changes its sign.

    Raises:
        SimoError: the sample has a target of a task that was not given.
    """
    targets = {}
    for name, target in sample.targets.items():
        mirrored = target.flip(-1)
        if isinstance(task_of(tasks, name), Normals):
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
    image = F.interpolate(sample.image[None, :, y : y + rows, x : x + columns], size=(height, width), mode="bilinear")

    def label(target: Tensor) -> Tensor:
        return nearest(target[..., y : y + rows, x : x + columns], (height, width))

    return _seen_closer(sample, tasks, image[0], label, math.sqrt(height * width / (rows * columns)))


def enlarge_and_crop(
    sample: Sample, tasks: Tasks, scale: float, crop: tuple[int, int], top: float = 0.5, left: float = 0.5
) -> Sample:
    """Enlarge the sample by `scale` and cut a window of the size `crop` out of it.

    Interpolation and the rescaling of depth and disparity are those of `zoom`.

    Args:
        sample: What to enlarge.
        tasks: Its tasks.
        scale: At least 1. The enlarged image has whole pixels; depth is divided by the scale that results.
        crop: Height and width of the result.
        top: Where the window lies, from 0 to just below 1; every whole pixel is as likely for an even `top`.
        left: The same from left to right.

    Raises:
        SimoError: the crop is larger than the enlarged sample, or a target is of a task that was not given.
    """
    height, width = sample.size
    full = (int(height * scale), int(width * scale))
    if crop[0] > full[0] or crop[1] > full[1]:
        raise SimoError(
            f"{sample.key!r} is {height}x{width} (height x width), too small for a crop of {crop[0]}x{crop[1]}; "
            "choose a smaller crop"
        )
    y, x = (
        min(int(place * (old - new + 1)), old - new) for place, old, new in zip((top, left), full, crop, strict=True)
    )
    window = (..., slice(y, y + crop[0]), slice(x, x + crop[1]))
    image = F.interpolate(sample.image[None], size=full, mode="bilinear")[0][window].contiguous()

    def label(target: Tensor) -> Tensor:
        return nearest(target, full)[window].contiguous()

    return _seen_closer(sample, tasks, image, label, math.sqrt(full[0] * full[1] / (height * width)))


def task_of(tasks: Tasks, name: str) -> Task:
    """The task of a target.

    Raises:
        SimoError: it is not among them.
    """
    if name not in tasks:
        raise SimoError(f"target {name!r} is of no known task; the augmentation has {', '.join(tasks) or 'none'}")
    return tasks[name]


def _seen_closer(
    sample: Sample, tasks: Tasks, image: Tensor, label: Callable[[Tensor], Tensor], scale: float
) -> Sample:
    """The sample with an image that looks `scale` times closer; `label` moves targets and masks to its pixels."""
    targets = {}
    for name, target in sample.targets.items():
        task, moved = task_of(tasks, name), label(target)
        if isinstance(task, Depth):
            moved = moved / scale
        elif isinstance(task, Disparity):
            moved = moved * scale
        targets[name] = moved
    return replace(sample, image=image, targets=targets, masks={name: label(m) for name, m in sample.masks.items()})
