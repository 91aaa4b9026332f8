"""A DPT's readout that reads all taps: what is left of aligners that do, once they are folded into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.models.encoder import Taps

_ROUNDING = 1e-9
"""Singular values below this share of a matrix's norm are what float64 products leave of nothing."""


class CrossTapReadouts(nn.Module):
    """The readouts of all taps, in place of smp's `ReadoutConcatBlock`s.

    tap_channels: of each tap. has_tokens: whether there are class tokens. ranks: of each tap's `CrossTapReadout`.
    """

    def __init__(self, tap_channels: Sequence[int], has_tokens: bool, ranks: Sequence[int | None]) -> None:
        super().__init__()
        self.has_tokens = has_tokens
        self.taps = nn.ModuleList(
            CrossTapReadout(channels, sum(tap_channels[:index]), sum(tap_channels), has_tokens, rank)
            for index, (channels, rank) in enumerate(zip(tap_channels, ranks, strict=True))
        )

    def forward(self, taps: Taps) -> list[Tensor]:
        """The map (B, C, h, w) of each tap."""
        patches = torch.cat([m.flatten(2).transpose(1, 2) for m in taps.maps], dim=-1)
        tokens = torch.cat([p[:, 0] for p in taps.prefix], dim=-1) if self.has_tokens else None
        found = [readout(patches, tokens) for readout in self.taps]
        return [f.transpose(1, 2).reshape(m.shape) for f, m in zip(found, taps.maps, strict=True)]


class CrossTapReadout(nn.Module):
    """What one tap becomes: GELU(W z + U V a + P t + Q V s + b).

    z are the tap's own patches and a those of all taps, t its own class token and s those of all taps. What class
    tokens add is the same for all patches of an image and is computed once.

    channels: C of the tap. start: where they begin among all. read_channels: D of all taps. has_tokens: whether there
    are class tokens. rank: of V; 0 where other taps add nothing; None where full matrices of a and s take the places of
    W and U V, P and Q V.
    """

    def __init__(self, channels: int, start: int, read_channels: int, has_tokens: bool, rank: int | None) -> None:
        super().__init__()
        self.own = slice(start, start + channels)
        self.rank = rank
        reads = read_channels if rank is None else channels
        self.patches = nn.Linear(reads, channels)
        self.tokens = nn.Linear(reads, channels, bias=False) if has_tokens else None
        if rank:
            self.down = nn.Linear(read_channels, rank, bias=False)
            self.patches_up = nn.Linear(rank, channels, bias=False)
            self.tokens_up = nn.Linear(rank, channels, bias=False) if has_tokens else None

    def forward(self, patches: Tensor, tokens: Tensor | None) -> Tensor:
        """Patches (B, N, D) and class tokens (B, D) of all taps -> (B, N, C)."""
        found: Tensor = self.patches(patches if self.rank is None else patches[..., self.own])
        if self.rank:
            found = found + self.patches_up(self.down(patches))
        if self.tokens is not None and tokens is not None:
            once = self.tokens(tokens if self.rank is None else tokens[..., self.own])
            if self.rank and self.tokens_up is not None:
                once = once + self.tokens_up(self.down(tokens))
            found = found + once[:, None]
        return F.gelu(found)

    def write(self, maps: ReadoutMaps) -> None:
        """Become these maps, of this readout's rank."""
        with torch.no_grad():
            self.patches.bias.copy_(maps.bias)
            for layer, matrix in zip((self.patches, self.tokens), maps.matrices, strict=False):
                if layer is not None:
                    layer.weight.copy_(matrix if self.rank is None else matrix[:, self.own])
            if self.rank:
                self.down.weight.copy_(maps.down)
                for layer, up in zip((self.patches_up, self.tokens_up), maps.ups, strict=False):
                    if layer is not None:
                        layer.weight.copy_(up)


class ReadoutMaps(NamedTuple):
    """What a `CrossTapReadout` is to be, in float64.

    matrices: (1 or 2, C, D) of all patches and of all class tokens. bias: (C,). ups: (1 or 2, C, r), which times `down`
    (r, D) are the matrices without what they read of the tap itself. rank: r where that is the least to compute, None
    where full matrices are.
    """

    matrices: Tensor
    bias: Tensor
    ups: Tensor
    down: Tensor
    rank: int | None

    @classmethod
    def of(cls, matrices: Tensor, bias: Tensor, own: slice) -> ReadoutMaps:
        """Those of such matrices; own: the channels of the tap itself among all."""
        beside = matrices.clone()
        beside[..., own] = 0
        left, values, down = torch.linalg.svd(beside.flatten(0, 1), full_matrices=False)
        rank = int((values > _ROUNDING * torch.linalg.norm(matrices)).sum())
        ups = (left[:, :rank] * values[:rank]).unflatten(0, matrices.shape[:2])
        _, channels, reads = matrices.shape
        low = channels * channels + rank * (channels + reads) < channels * reads  # multiplications for a patch
        return cls(matrices, bias, ups, down[:rank], rank if low else None)
