"""Where normals point, and whether what is visible could point there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simo_merge.checking.statistics.coverage import TaskStatistics
from simo_merge.tasks import Task

STEEP = 0.9
"""A normal with a component beyond this counts as pointing along that axis."""
OUTER = 1 / 3
"""Votes are counted this far (as a share of half the image) from the middle row or column and beyond."""


class NormalsStatistics(TaskStatistics):
    """Angles of the normals, lengths, and votes on the sign of each axis.

    A surface is visible only from its front, n . v > 0 with v the direction towards the camera. So one that points
    right is seen in the left half of the image, one that points up (a floor) in the lower half: each steep pixel
    away from the middle is a vote for or against the sign of its axis, whatever the lens.

    Attributes:
        angles: For x, y, z: counts of the angle between the vector and the plane of the other two axes, in
            degrees from -90 to 90, (3, 180).
        lengths_off: Valid vectors that are longer or shorter than 1 by more than 0.01.
        facing: Valid vectors whose z is positive.
        votes: For x and y: (against, for) its sign, (2, 2).
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.angles: npt.NDArray[np.int64] = np.zeros((3, 180), dtype=np.int64)
        self.lengths_off = 0
        self.facing = 0
        self.votes: npt.NDArray[np.int64] = np.zeros((2, 2), dtype=np.int64)

    @property
    def facing_share(self) -> float:
        """Share of vectors that point towards the viewer."""
        return self.facing / max(self.valid, 1)

    def _count(self, target: Tensor, mask: Tensor) -> None:
        vectors = target[:, mask].double()  # (3, N)
        length = vectors.norm(dim=0)
        self.lengths_off += int(((length - 1).abs() > 0.01).sum())
        self.facing += int((vectors[2] > 0).sum())
        degrees = torch.rad2deg(torch.asin((vectors / length.clamp(min=1e-9)).clamp(-1, 1)))
        bins = (degrees + 90).floor().clamp(0, 179).long().numpy()
        for axis in range(3):
            self.angles[axis] += np.bincount(bins[axis], minlength=180)
        height, width = mask.shape
        right = _from_middle(width)[None, :].expand(height, width)
        down = _from_middle(height)[:, None].expand(height, width)
        for axis, place in ((0, right), (1, down)):
            component = target[axis]
            steep = mask & (component.abs() > STEEP) & (place.abs() > OUTER)
            fitting = int((steep & (component * place < 0)).sum())
            self.votes[axis] += np.array([int(steep.sum()) - fitting, fitting])

    def _numbers(self) -> dict[str, Any]:
        return {
            "facing_viewer_share": round(self.facing_share, 6),
            "not_unit": self.lengths_off,
            "angles_degrees": {name: self.angles[axis].tolist() for axis, name in enumerate("xyz")},
        }


def _from_middle(length: int) -> Tensor:
    """Position of each pixel's centre between the middle (0) and the edges (-1 and 1)."""
    return (2 * torch.arange(length) + 1) / length - 1
