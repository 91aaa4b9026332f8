"""Another resolution for a sample: pictures are averaged, labels take the nearest pixel."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.sample import Sample


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at another height and width.

    The image is interpolated bilinearly, antialiased where it shrinks; labels and masks take the nearest pixel, so
    no label is invented. Values stay: metres are metres, normals keep the direction that they have in space, and a
    disparity counts the pixels of the image width that its unit states.

    Args:
        sample: What to resize.
        size: Height and width.
    """
    image = F.interpolate(sample.image[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return replace(
        sample,
        image=image,
        targets={name: nearest(target, size) for name, target in sample.targets.items()},
        masks={name: nearest(mask, size) for name, mask in sample.masks.items()},
    )


def nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """`(..., H, W)` of any type at another size, each pixel that of the nearest centre."""
    rows, columns = (_centres(old, new) for old, new in zip(values.shape[-2:], size, strict=True))
    picked = values.index_select(-2, rows)
    return picked.gather(-1, columns.expand(*picked.shape[:-1], size[1]))


@lru_cache(maxsize=64)
def _centres(old: int, new: int) -> Tensor:
    """For each of `new` pixels, the index of the old one that its centre lies in."""
    return (2 * torch.arange(new) + 1) * old // (2 * new)
