"""Linear aligners: a full matrix, a map of all taps, and a map for every kind of token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.models.aligners.base import TapAligner, TokenMaps
from simo_merge.models.aligners.surgery import shared_maps


class Change(nn.Module):
    """A linear map of tokens (..., D) -> (..., C) that starts at zero.

    rank: of its two factors; None for one full matrix (C, D), which is smaller than factors of a high rank.
    """

    def __init__(self, read_channels: int, channels: int, rank: int | None) -> None:
        super().__init__()
        if rank is None:
            self.full = nn.Parameter(torch.zeros(channels, read_channels))
        else:
            self.down = nn.Parameter(torch.empty(rank, read_channels))
            self.up = nn.Parameter(torch.zeros(channels, rank))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.rank = rank

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., C)."""
        if self.rank is None:
            return F.linear(tokens, self.full)
        return F.linear(F.linear(tokens, self.down), self.up)

    def matrix(self) -> Tensor:
        """The map as a matrix (C, D), float64."""
        if self.rank is None:
            return self.full.detach().double()
        return self.up.detach().double() @ self.down.detach().double()

    def set(self, down: Tensor, up: Tensor) -> None:
        """Become up @ down; down (r, D), up (C, r), r the rank where there is one."""
        with torch.no_grad():
            if self.rank is None:
                self.full.copy_(up @ down)
            else:
                self.down.copy_(down)
                self.up.copy_(up)


class FullAffineTap(TapAligner):
    """Z + M Z + b with a full matrix M (C, C), shared by all tokens, and offsets as in linear surgery."""

    def __init__(self, channels: int, prefix_tokens: int) -> None:
        super().__init__()
        self.change = Change(channels, channels, None)
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return (
            patches + self.change(patches) + self.patch_offset,
            prefix + self.change(prefix) + self.prefix_offset,
        )

    def maps(self) -> TokenMaps:
        """I + M for all tokens."""
        change = self.change.matrix()
        return shared_maps(change, slice(0, len(change)), self.patch_offset, self.prefix_offset)


class CrossTapTap(TapAligner):
    """Z + M [Z_1 ... Z_n] + b: a tap predicted from all taps, whose tokens are concatenated.

    M (C, sum of tap channels) has the given rank, or is full; all tokens share it. What the merge blurred at one
    depth can often be read off another, and reading costs no encoder pass: all taps are there already.

    start: where the tap's own channels begin among all of them.
    """

    reads_all = True

    def __init__(self, channels: int, prefix_tokens: int, read_channels: int, start: int, rank: int | None) -> None:
        super().__init__()
        self.own = slice(start, start + channels)
        self.change = Change(read_channels, channels, rank)
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches (B, N, C) and prefix tokens of this tap, from those of all taps (B, N, D)."""
        return (
            patches[..., self.own] + self.change(patches) + self.patch_offset,
            prefix[..., self.own] + self.change(prefix) + self.prefix_offset,
        )

    def maps(self) -> TokenMaps:
        """(C, D) matrices, the same for all tokens."""
        return shared_maps(self.change.matrix(), self.own, self.patch_offset, self.prefix_offset)


class TokenLinearTap(TapAligner):
    """Z + M_g Z + b_g: a map of its own for the patches and for every prefix token (g)."""

    def __init__(self, channels: int, prefix_tokens: int, rank: int | None) -> None:
        super().__init__()
        self.patch_change = Change(channels, channels, rank)
        self.prefix_change = nn.ModuleList(Change(channels, channels, rank) for _ in range(prefix_tokens))
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))

    def changes(self) -> list[Change]:
        """The patches' change, then each prefix token's."""
        return [self.patch_change, *(m for m in self.prefix_change if isinstance(m, Change))]

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        aligned = patches + self.patch_change(patches) + self.patch_offset
        if not len(self.prefix_change):
            return aligned, prefix
        change = torch.stack([m(prefix[:, i]) for i, m in enumerate(self.prefix_change)], dim=1)  # (B, P, C)
        return aligned, prefix + change + self.prefix_offset

    def maps(self) -> TokenMaps:
        """I + M_g for each group of tokens."""
        changes = [change.matrix() for change in self.changes()]
        eye = torch.eye(len(changes[0]), dtype=torch.float64, device=changes[0].device)
        prefix = torch.stack(changes[1:]) + eye if changes[1:] else eye.new_zeros(0, *eye.shape)
        return TokenMaps(
            eye + changes[0], self.patch_offset.detach().double(), prefix, self.prefix_offset.detach().double()
        )
