"""A DPT's readout that reads all taps: what is left of aligners that do, once they are folded into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.models.encoder import Taps

_ROUNDING = 1e-9
"""Singular values below this share of the largest are what float64 products leave of nothing."""


class CrossTapReadouts(nn.Module):
    """The readouts of all taps, in place of smp's `ReadoutConcatBlock`s.

    tap_channels: of each tap. prefix: whether class tokens are read. ranks: of each tap's readout; see
    `CrossTapReadout`.
    """

    def __init__(self, tap_channels: Sequence[int], prefix: bool, ranks: Sequence[int | None]) -> None:
        super().__init__()
        everything = sum(tap_channels)
        self.prefix = prefix
        self.taps = nn.ModuleList(
            CrossTapReadout(channels, sum(tap_channels[:index]), everything, prefix, rank)
            for index, (channels, rank) in enumerate(zip(tap_channels, ranks, strict=True))
        )

    def forward(self, taps: Taps) -> list[Tensor]:
        """The map (B, C, h, w) of each tap."""
        patches = torch.cat([m.flatten(2).transpose(1, 2) for m in taps.maps], dim=-1)
        tokens = torch.cat([p[:, 0] for p in taps.prefix], dim=-1) if self.prefix else None
        found = [readout(patches, tokens) for readout in self.taps]
        return [f.transpose(1, 2).reshape(m.shape) for f, m in zip(found, taps.maps, strict=True)]


class CrossTapReadout(nn.Module):
    """GELU(W z + U V a + P c + b) of one tap: z its patches, a those of all taps, c all taps' class tokens.

    What class tokens add is the same for all patches of an image and is computed once.

    channels: C of the tap. start: where they begin among all. read_channels: D of all taps. prefix: whether there is c.
    rank: of U V; 0 where other taps add nothing; None where one full matrix of a takes the place of W and U V.
    """

    def __init__(self, channels: int, start: int, read_channels: int, prefix: bool, rank: int | None) -> None:
        super().__init__()
        self.own = slice(start, start + channels)
        self.rank = rank
        self.patches = nn.Linear(read_channels if rank is None else channels, channels)
        if rank:
            self.down = nn.Linear(read_channels, rank, bias=False)
            self.up = nn.Linear(rank, channels, bias=False)
        if prefix:
            self.tokens = nn.Linear(read_channels, channels, bias=False)

    def forward(self, patches: Tensor, tokens: Tensor | None) -> Tensor:
        """Patches (B, N, D) and class tokens (B, D) of all taps -> (B, N, C)."""
        found: Tensor = self.patches(patches if self.rank is None else patches[..., self.own])
        if self.rank:
            found = found + self.up(self.down(patches))
        if tokens is not None:
            found = found + self.tokens(tokens)[:, None]
        return F.gelu(found)

    def write(self, patches: Tensor, tokens: Tensor | None, bias: Tensor) -> None:
        """Become GELU(patches a + tokens c + bias); patches (C, D), of the rank beside the tap's own, tokens (C, D)."""
        with torch.no_grad():
            self.patches.weight.copy_(patches if self.rank is None else patches[:, self.own])
            self.patches.bias.copy_(bias)
            if self.rank:
                left, values, right = torch.linalg.svd(_beside(patches, self.own), full_matrices=False)
                self.up.weight.copy_(left[:, : self.rank] * values[: self.rank])
                self.down.weight.copy_(right[: self.rank])
            if tokens is not None:
                self.tokens.weight.copy_(tokens)


def cheapest_rank(patches: Tensor, tap: int, tap_channels: Sequence[int]) -> int | None:
    """The rank with which the readout of a tap is this matrix (C, D) at the least cost."""
    own = slice(sum(tap_channels[:tap]), sum(tap_channels[: tap + 1]))
    values = torch.linalg.svdvals(_beside(patches, own))
    rank = int((values > _ROUNDING * torch.linalg.matrix_norm(patches, 2)).sum())
    channels, reads = patches.shape
    return rank if channels * channels + rank * (channels + reads) < channels * reads else None


def _beside(patches: Tensor, own: slice) -> Tensor:
    """The matrix (C, D) without what it reads of the tap itself."""
    others = patches.clone()
    others[:, own] = 0
    return others
