"""Exact tasks that cost no labels: maps computed from the image, its depth or its normals.

They give a data set more tasks to merge, as Taskonomy has. Each is a fixed formula, computed on the CPU in
milliseconds when a sample is read. Three of them share the form x^2 / (x^2 + s^2): it grows with x, lies in
[0, 1) and is one half at x = s, so noise stays near 0 and strong edges do not outweigh all else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.tasks import Regression

Known = Mapping[str, tuple[Tensor, Tensor]]
"""Task name -> target and mask of what was read from files."""

OCCLUSION_GAP = 0.05
"""Relative jump in depth at which `occlusion_edges` is one half."""
TEXTURE_CONTRAST = 0.1
"""Change of luminance per pixel at which `texture_edges` is one half."""
KEYPOINT_CONTRAST = 0.05
"""Change of luminance per pixel (r.m.s., in the weaker direction) at which `keypoints` is one half."""
LIGHT = (0.0, -math.sqrt(0.5), math.sqrt(0.5))
"""Direction towards the light of `shading`: from above and behind the viewer. Its x is 0, so that the shading
of a mirrored room is the mirrored shading."""

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Derived:
    """A task with the formula of its target.

    Attributes:
        task: What a model has to predict.
        source: `image`, or the name and kind of the task that the formula reads.
        formula: The source as (C, H, W) and its (H, W) mask -> the target and its mask.
    """

    task: Regression
    source: str
    formula: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def compute(self, image: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """Target `(C, H, W)` float32 and mask `(H, W)` for an image and what is known about it."""
        if self.source == "image":
            return self.formula(image, torch.ones(image.shape[-2:], dtype=torch.bool))
        return self.formula(*known[self.source])


def occlusion_edges(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where one surface hides another: the bend of inverse depth.

    Along a plane q = 1 / z is affine in the pixel's position, however steeply the plane runs away from the
    camera. So its second difference is 0, and a jump of z is what is left:

        c = 4 |q[i-1] - 2 q[i] + q[i+1]| / (q[i-1] + 2 q[i] + q[i+1]), the larger of both axes,
        target = c^2 / (c^2 + OCCLUSION_GAP^2), in [0, 1).

    c is the relative jump of depth, whatever its unit. A fold, where two planes meet without a jump, bends q
    by a pixel's step only (up to about 0.02 at a floor's edge). A pixel is valid where it and its four
    neighbours have a depth; on the image's border only the neighbours inside count.
    """
    q = torch.where(mask, 1.0 / torch.where(mask, depth[0], 1.0).double(), 0.0)
    bend, valid = torch.zeros_like(q), mask.clone()
    for axis in (0, 1):
        moved, seen, out = q.movedim(axis, 0), mask.movedim(axis, 0), valid.movedim(axis, 0)
        before, here, after = moved[:-2], moved[1:-1], moved[2:]
        c = 4 * (before - 2 * here + after).abs() / (before + 2 * here + after).clamp(min=1e-12)
        inner = bend.movedim(axis, 0)[1:-1]
        inner.copy_(torch.maximum(inner, c))
        out[1:] &= seen[:-1]
        out[:-1] &= seen[1:]
    return torch.where(valid, _saturate(bend.square(), OCCLUSION_GAP), 0.0)[None].float(), valid


def texture_edges(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of the picture, whatever causes them: the Sobel magnitude of luminance.

    m^2 = gx^2 + gy^2 with the 3 x 3 Sobel filters divided by 8, so that m is the change of luminance (0 to
    1) per pixel; target = m^2 / (m^2 + TEXTURE_CONTRAST^2), in [0, 1).
    """
    gx, gy = _gradients(image)
    return _saturate(gx.square() + gy.square(), TEXTURE_CONTRAST)[None].float(), mask


def keypoints(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How well a spot can be found again: the response of Shi and Tomasi (Good Features to Track, CVPR 1994).

    The smaller eigenvalue l of the structure tensor [[a, b], [b, c]], the 5 x 5 binomial mean of
    (gx^2, gx gy, gy^2): l = (a + c) / 2 - sqrt(((a - c) / 2)^2 + b^2); target = l / (l +
    KEYPOINT_CONTRAST^2), in [0, 1).
    """
    gx, gy = _gradients(image)
    a, b, c = _binomial(torch.stack([gx * gx, gx * gy, gy * gy]))
    smaller = (a + c) / 2 - (((a - c) / 2).square() + b.square()).sqrt()
    return _saturate(smaller.clamp(min=0), KEYPOINT_CONTRAST)[None].float(), mask


def reconstruction(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The image that the model sees: RGB in [0, 1]."""
    return image.clone(), mask


def shading(normals: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A matt white surface under one distant light: max(0, n . LIGHT), in [0, 1]."""
    light = torch.tensor(LIGHT, dtype=normals.dtype)
    lit = torch.einsum("chw,c->hw", normals, light).clamp(0, 1)
    return torch.where(mask, lit, 0.0)[None], mask


def _map(name: str, channels: int = 1) -> Regression:
    return Regression(name=name, channels=channels, value_range=(0.0, 1.0))


DERIVED: dict[str, Derived] = {
    "occlusion_edges": Derived(_map("occlusion_edges"), "depth", occlusion_edges),
    "texture_edges": Derived(_map("texture_edges"), "image", texture_edges),
    "keypoints": Derived(_map("keypoints"), "image", keypoints),
    "reconstruction": Derived(_map("reconstruction", channels=3), "image", reconstruction),
    "shading": Derived(_map("shading"), "normals", shading),
}
"""The derived tasks by name."""


def _saturate(squared: Tensor, half: float) -> Tensor:
    return squared / (squared + half * half)


def _gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance's change per pixel to the right and downwards, 2 x (H, W) float64, border continued."""
    luma = torch.einsum("chw,c->hw", image.double(), torch.tensor(_LUMA, dtype=torch.float64))
    padded = F.pad(luma[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across = (padded[:, 2:] - padded[:, :-2]) / 2  # (H + 2, W)
    down = (padded[2:] - padded[:-2]) / 2  # (H, W + 2)
    gx = (across[:-2] + 2 * across[1:-1] + across[2:]) / 4
    gy = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4
    return gx, gy


def _binomial(maps: Tensor) -> Tensor:
    """(C, H, W) smoothed by (1, 4, 6, 4, 1) / 16 along both axes."""
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=maps.dtype) / 16
    padded = F.pad(maps[None], (2, 2, 2, 2), mode="replicate")[0]
    rows = torch.stack([w * padded[:, i : i + maps.shape[1]] for i, w in enumerate(weights)]).sum(0)
    return torch.stack([w * rows[:, :, i : i + maps.shape[2]] for i, w in enumerate(weights)]).sum(0)
