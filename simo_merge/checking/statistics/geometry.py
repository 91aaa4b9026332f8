"""Normals against the normals of the depth, and disparity against depth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simo_merge.tasks import Disparity, Task

FIELD_OF_VIEW = 60.0
"""Assumed horizontal angle in degrees. Signs of axes do not depend on it: another angle stretches space towards
the camera, which tilts planes and mirrors none."""
_BEND = 0.03
_WIDEST = 160


class Orientation:
    """Correlation of labelled normals m with normals n of finite differences of the depth.

    P(u, v) = z ((u - cx) / f, (v - cy) / f, 1) with f of `FIELD_OF_VIEW`, and n = -(P_u x P_v) / |P_u x P_v| in the
    convention x right, y down, z towards the viewer. Large images are thinned out to about 160 columns. Pixels next
    to a jump or a fold of depth are left out: where 1 / z, which is affine on a plane, bends by more than 3 %.

    Attributes:
        normals, depth: The two tasks; a disparity serves as 1 / z.
        pixels: Pixels compared.
    """

    def __init__(self, normals: Task, depth: Task) -> None:
        self.normals = normals
        self.depth = depth
        self.pixels = 0
        self._products = np.zeros((3, 3))
        self._squares = np.zeros((2, 3))

    def add(self, targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        """Compare one image's maps."""
        labelled, near = targets[self.normals.name], targets[self.depth.name][0]
        valid = masks[self.normals.name] & masks[self.depth.name] & (near > 0)
        step = max(1, math.ceil(near.shape[1] / _WIDEST))
        labelled, near, valid = labelled[:, ::step, ::step], near[::step, ::step].double(), valid[::step, ::step]
        if min(near.shape) < 3:
            return
        safe = torch.where(valid, near, 1.0)
        z = 1 / safe if isinstance(self.depth, Disparity) else safe
        computed, smooth = normals_of_depth(z, valid)
        ours = computed[:, smooth].numpy()  # (3, N)
        theirs = labelled[:, 1:-1, 1:-1][:, smooth].double().numpy()
        self.pixels += ours.shape[1]
        self._products += theirs @ ours.T
        self._squares += np.stack([(theirs**2).sum(axis=1), (ours**2).sum(axis=1)])

    @property
    def correlation(self) -> npt.NDArray[np.float64]:
        """Of each labelled axis (rows) with each computed one (columns), about 0: (3, 3) in [-1, 1]."""
        norm = np.sqrt(np.outer(self._squares[0], self._squares[1]))
        return np.divide(self._products, norm, out=np.zeros((3, 3)), where=norm > 0)

    @property
    def evident(self) -> npt.NDArray[np.bool_]:
        """For each axis, whether enough surfaces point along it to judge its sign, (3,)."""
        share = self._squares / max(self.pixels, 1)
        return np.asarray((share.min(axis=0) > 0.005) & (self.pixels >= 500))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "normals": self.normals.name,
            "depth": self.depth.name,
            "pixels": self.pixels,
            "correlation": [[round(float(value), 4) for value in row] for row in self.correlation],
        }


def normals_of_depth(z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Normals of a depth map by central differences, and where they can be relied on.

    Args:
        z: Depth along the optical axis, (H, W), float64.
        valid: Where it is known, (H, W).

    Returns:
        Normals (3, H - 2, W - 2) of the inner pixels, x right, y down, z towards the viewer; (H - 2, W - 2) bool.
    """
    height, width = z.shape
    focal = width / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    x = (torch.arange(width, dtype=z.dtype) - (width - 1) / 2) / focal
    y = (torch.arange(height, dtype=z.dtype) - (height - 1) / 2) / focal
    points = torch.stack([x[None, :] * z, y[:, None] * z, z])
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    away = torch.linalg.cross(across, down, dim=0)
    normals = torch.stack([-away[0], -away[1], away[2]])
    q = 1 / z
    bend = torch.maximum(
        (q[1:-1, 2:] - 2 * q[1:-1, 1:-1] + q[1:-1, :-2]).abs(), (q[2:, 1:-1] - 2 * q[1:-1, 1:-1] + q[:-2, 1:-1]).abs()
    )
    known = valid[1:-1, 1:-1] & valid[1:-1, 2:] & valid[1:-1, :-2] & valid[2:, 1:-1] & valid[:-2, 1:-1]
    length = normals.norm(dim=0)
    return normals / length.clamp(min=1e-12), known & (bend < _BEND * q[1:-1, 1:-1]) & (length > 0)


class Stereo:
    """Whether depth and disparity of the same image belong together: depth . disparity = focal length . baseline.

    Attributes:
        depth, disparity: The two tasks.
        spread: For each image, the mean absolute deviation of log(depth . disparity) from its median.
    """

    def __init__(self, depth: Task, disparity: Task) -> None:
        self.depth = depth
        self.disparity = disparity
        self.spread: list[float] = []
        self.keys: list[str] = []

    def add(self, targets: dict[str, Tensor], masks: dict[str, Tensor], key: str) -> None:
        """Compare one image's maps."""
        step = max(1, targets[self.depth.name].shape[-1] // _WIDEST)
        thin = (..., slice(None, None, step), slice(None, None, step))
        z, d = targets[self.depth.name][0][thin], targets[self.disparity.name][0][thin]
        both = masks[self.depth.name][thin] & masks[self.disparity.name][thin] & (z > 0) & (d > 0)
        if int(both.sum()) < 100:
            return
        product = (z[both].double() * d[both].double()).log()
        self.spread.append(float((product - product.median()).abs().mean()))
        self.keys.append(key)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        middle = float(np.median(self.spread)) if self.spread else None
        return {"depth": self.depth.name, "disparity": self.disparity.name, "median_spread": middle}
