"""An aligner behind which the patches are stretched: channel by channel, or along directions of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.aligners.base import TapAligner, TokenMaps

CHANNELS, DIRECTIONS = "channels", "directions"


class StretchedTap(TapAligner):
    """S A(Z) + b for the patches, A(Z) for prefix tokens: A another tap aligner, S a matrix.

    inner: A. channels: of the tap. along: "channels", S is diagonal; "directions", it is full.

    Raises:
        SimoError: along anything else.
    """

    def __init__(self, inner: TapAligner, channels: int, along: str) -> None:
        super().__init__()
        if along not in (CHANNELS, DIRECTIONS):
            raise SimoError(f"patches are stretched along {CHANNELS!r} or {DIRECTIONS!r}, got {along!r}")
        self.reads_all, self.spatial = inner.reads_all, inner.spatial
        self.inner = inner
        whole = along == DIRECTIONS
        self.patch_scale = nn.Parameter(torch.eye(channels) if whole else torch.ones(channels))
        self.patch_shift = nn.Parameter(torch.zeros(channels))

    def forward(self, patches: Tensor, prefix: Tensor, *grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens; `grid` where the aligner within asks for it."""
        aligned, prefix = self.inner(patches, prefix, *grid)
        scale, shift = self.patch_scale, self.patch_shift
        return (aligned * scale + shift if scale.dim() == 1 else F.linear(aligned, scale, shift)), prefix

    def maps(self) -> TokenMaps | None:
        """Those of the aligner within, S applied to the patches'; None where it has none."""
        found = self.inner.maps()
        if found is None:
            return None
        scale = self.patch_scale.detach().double()
        scale = torch.diag(scale) if scale.dim() == 1 else scale
        offset = scale @ found.patch_offset + self.patch_shift.detach().double()
        return found._replace(patch=scale @ found.patch, patch_offset=offset)
