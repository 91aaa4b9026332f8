"""Aligners of few parameters: none, an offset, one scale, a scale and a shift for every channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simo_merge.models.aligners.base import TapAligner, TokenMaps


class IdentityTap(TapAligner):
    """Leaves its tap as it is: for taps that calibration images speak against changing."""

    def __init__(self, channels: int, prefix_tokens: int) -> None:
        super().__init__()
        self.channels = channels
        self.prefix_tokens = prefix_tokens

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """The same patches and prefix tokens."""
        return patches, prefix

    def maps(self) -> TokenMaps:
        """Identities."""
        zeros = torch.zeros(self.prefix_tokens, self.channels, dtype=torch.float64)
        eye = torch.eye(self.channels, dtype=torch.float64)
        return TokenMaps(eye, torch.zeros_like(eye[0]), eye.repeat(self.prefix_tokens, 1, 1), zeros)


class ShiftTap(TapAligner):
    """Z + b: an offset for the patches and one for each prefix token."""

    def __init__(self, channels: int, prefix_tokens: int) -> None:
        super().__init__()
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return patches + self.patch_offset, prefix + self.prefix_offset

    def maps(self) -> TokenMaps:
        """Identities with offsets."""
        eye = torch.eye(len(self.patch_offset), dtype=torch.float64, device=self.patch_offset.device)
        offsets = self.prefix_offset.detach().double()
        return TokenMaps(eye, self.patch_offset.detach().double(), eye.repeat(len(offsets), 1, 1), offsets)


class MagnitudeTap(TapAligner):
    """s Z: one scale for the patches and one for each prefix token."""

    def __init__(self, channels: int, prefix_tokens: int) -> None:
        super().__init__()
        self.channels = channels
        self.patch_scale = nn.Parameter(torch.ones(()))
        self.prefix_scale = nn.Parameter(torch.ones(prefix_tokens))

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return patches * self.patch_scale, prefix * self.prefix_scale[:, None]

    def maps(self) -> TokenMaps:
        """Multiples of the identity."""
        eye = torch.eye(self.channels, dtype=torch.float64, device=self.patch_scale.device)
        scales = self.prefix_scale.detach().double()
        return TokenMaps(
            self.patch_scale.detach() * eye,
            torch.zeros_like(eye[0]),
            scales[:, None, None] * eye,
            eye.new_zeros(len(scales), self.channels),
        )


class AffineTap(TapAligner):
    """Per-task normalization recalibration: a scale and a shift for every channel.

    Patches have one pair of vectors, every prefix token has its own.
    """

    def __init__(self, channels: int, prefix_tokens: int) -> None:
        super().__init__()
        self.patch_scale = nn.Parameter(torch.ones(channels))
        self.patch_shift = nn.Parameter(torch.zeros(channels))
        self.prefix_scale = nn.Parameter(torch.ones(prefix_tokens, channels))
        self.prefix_shift = nn.Parameter(torch.zeros(prefix_tokens, channels))

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return (
            patches * self.patch_scale + self.patch_shift,
            prefix * self.prefix_scale + self.prefix_shift,
        )

    def maps(self) -> TokenMaps:
        """Diagonal matrices with offsets."""
        return TokenMaps(
            torch.diag(self.patch_scale.detach().double()),
            self.patch_shift.detach().double(),
            torch.diag_embed(self.prefix_scale.detach().double()),
            self.prefix_shift.detach().double(),
        )
