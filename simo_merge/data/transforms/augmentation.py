"""Random changes of training samples, and the published recipes for them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simo_merge.data.derived import DERIVED
from simo_merge.data.sample import Sample
from simo_merge.data.transforms.geometry import Tasks, enlarge_and_crop, flip, task_of, zoom
from simo_merge.errors import SimoError

SCALES = (1.0, 1.2, 1.5)

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "mtan": {"jitter": 0.0},
    "simo": {"jitter": 0.0, "enlarge_first": True},
}
"""Name -> what differs from the defaults of `Augmentation`; see `Augmentation.named`."""


class Augmentation:
    """Zoom, mirror and colour jitter of one sample; all chance comes from the generator that is passed.

    Targets that are computed from the image alone (texture edges, keypoints, reconstruction) are computed
    again from the augmented image, jitter included: so they stay exact for what the model sees, and
    reconstruction does not ask it to guess a jitter. All other targets move with the pixels.

    Args:
        tasks: The data set's tasks: how a target changes depends on its kind.
        flip: Probability of mirroring left and right.
        scales: Zoom factors, at least 1, one of which is drawn.
        jitter: Strength of the colour jitter: brightness, contrast and saturation by a factor within
            1 +- jitter, hue by jitter / 10 of a turn. 0 leaves the colours alone.
        enlarge_first: Enlarge the whole sample and cut out `crop` (`enlarge_and_crop`), instead of cutting out
            a window and enlarging it to the sample's size (`zoom`).
        crop: Height and width of the result, with `enlarge_first`; None keeps the sample's.

    Raises:
        SimoError: a probability, scale, strength or size out of range.
    """

    def __init__(
        self,
        tasks: Tasks,
        flip: float = 0.5,
        scales: Sequence[float] = SCALES,
        jitter: float = 0.2,
        enlarge_first: bool = False,
        crop: tuple[int, int] | None = None,
    ) -> None:
        if not 0 <= flip <= 1:
            raise SimoError(f"flip is {flip}, expected a probability from 0 to 1")
        if not scales or not all(1 <= scale < math.inf for scale in scales):
            raise SimoError(f"scales are {list(scales)}, expected one or more numbers of at least 1")
        if not 0 <= jitter < 1:
            raise SimoError(f"jitter is {jitter}, expected a number from 0 to less than 1")
        if crop is not None and min(crop) < 1:
            raise SimoError(f"crop is {crop}, expected (height, width), both at least 1")
        if crop is not None and not enlarge_first:
            raise SimoError("a crop needs enlarge_first=True, as the recipe simo has it; else samples keep their size")
        self.tasks = dict(tasks)
        self.flip = flip
        self.scales = tuple(scales)
        self.enlarge_first = enlarge_first
        self.crop = crop
        self._jitter = _colour_jitter(jitter) if jitter else None

    @classmethod
    def named(cls, name: str, tasks: Tasks, crop: tuple[int, int] | None = None) -> Augmentation:
        """A recipe by its name; all of them mirror every second sample and draw a scale of 1, 1.2 or 1.5.

        * `default`: a window is cut out and enlarged, and colours are jittered.
        * `mtan`: the same without jitter, as MTAN's code does on NYUv2 (`im2im_pred/create_dataset.py`).
        * `simo`: the sample is enlarged and a window of the size `crop` is cut out, as in the code of
          arXiv 2504.11268 (`training/create_dataset.py`), which takes 280 x 378 of NYUv2's 288 x 384 and
          Cityscapes' 128 x 256 whole.

        Ours keep two things exact that the published code does not: labels lie where their pixels lie (the
        published nearest neighbours are up to half a pixel beside the image, and MTAN's interpolated normals
        are shorter than 1), and depth is divided by the scale in whole pixels, not by the one that was drawn.

        Raises:
            SimoError: an unknown name, or a crop for a recipe that keeps the sample's size.
        """
        if name not in RECIPES:
            raise SimoError(f"unknown augmentation {name!r}; known: {', '.join(RECIPES)}")
        return cls(tasks, crop=crop, **RECIPES[name])

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, augmented. The same `rng` state gives the same result.

        Raises:
            SimoError: the sample has a target of a task that was not given, or is too small for the crop.
        """
        scale = float(rng.choice(self.scales))
        top, left = rng.random(), rng.random()
        mirrored = rng.random() < self.flip
        seed = int(rng.integers(2**31))
        if self.enlarge_first:
            sample = enlarge_and_crop(sample, self.tasks, scale, self.crop or sample.size, top, left)
        elif scale > 1:
            sample = zoom(sample, self.tasks, scale, top, left)
        if mirrored:
            sample = flip(sample, self.tasks)
        if self._jitter is not None:
            sample = replace(sample, image=_jittered(self._jitter, sample.image, seed))
        return _recompute(sample, self.tasks)


def _recompute(sample: Sample, tasks: Tasks) -> Sample:
    """Compute the targets that are functions of the image alone from the image as it is now."""
    targets = dict(sample.targets)
    for name in targets:
        derived = DERIVED.get(name)
        # A data set may have a task of its own of this name, read from files: that one is not equal to ours.
        if derived is not None and derived.source == "image" and task_of(tasks, name) == derived.task:
            targets[name] = derived.compute(sample.image, {})[0]
    return replace(sample, targets=targets)


def _colour_jitter(strength: float) -> Any:
    # albumentations asks its server for a newer version when it is imported, unless this is set.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    factors = (1 - strength, 1 + strength)
    hue = strength / 10
    return albumentations.ColorJitter(brightness=factors, contrast=factors, saturation=factors, hue=(-hue, hue), p=1.0)


def _jittered(jitter: Any, image: Tensor, seed: int) -> Tensor:
    """The image `(3, H, W)` with other colours; the seed alone decides which."""
    own = copy.copy(jitter)  # it keeps its chance in itself, and two threads may be here at once
    own.set_random_seed(seed)
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    jittered = np.ascontiguousarray(own(image=pixels)["image"].transpose(2, 0, 1))
    return torch.from_numpy(jittered).clamp_(0, 1)
