"""An aligner that looks at the eight neighbours of a patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.aligners.base import TapAligner


class SpatialTap(TapAligner):
    """Z + W_up (W_down Z + K * (P Z + p)) + b: linear surgery that reads its surroundings.

    P (k, C) picks a few directions, K (r, k, 3, 3) is a convolution over them with zeros around the map. Prefix
    tokens have no neighbours: they go through W_up W_down alone, with offsets of their own.

    directions: k. rank: r.
    """

    spatial = True

    def __init__(self, channels: int, prefix_tokens: int, rank: int, directions: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, rank, bias=False)
        self.up = nn.Linear(rank, channels, bias=False)
        self.pick = nn.Linear(channels, directions)
        self.around = nn.Parameter(torch.zeros(rank, directions, 3, 3))
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))
        nn.init.zeros_(self.up.weight)

    def forward(self, patches: Tensor, prefix: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens; grid = (h, w) says how the patches lie.

        Raises:
            SimoError: no grid, or one of another number of patches.
        """
        if grid is None or grid[0] * grid[1] != patches.shape[1]:
            raise SimoError(
                f"a spatial aligner needs the grid of its {patches.shape[1]} patches, got {grid}; give (height, width)"
            )
        picked = self.pick(patches).transpose(1, 2).unflatten(2, grid)  # (B, h*w, C) -> (B, k, h, w)
        around = F.conv2d(picked, self.around, padding=1).flatten(2).transpose(1, 2)  # -> (B, h*w, r)
        return (
            patches + self.up(self.down(patches) + around) + self.patch_offset,
            prefix + self.up(self.down(prefix)) + self.prefix_offset,
        )
