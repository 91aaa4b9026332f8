"""What every tap aligner is, and the affine maps that some of them are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class TokenMaps(NamedTuple):
    """An aligner of one tap written out as affine maps, token -> matrix @ token + offset, in float64.

    patch: (C, D). patch_offset: (C,). prefix: (P, C, D). prefix_offset: (P, C). D is C, or the channels of all taps
    together where the aligner reads them all.
    """

    patch: Tensor
    patch_offset: Tensor
    prefix: Tensor
    prefix_offset: Tensor


class TapAligner(nn.Module, ABC):
    """Aligns one tap: (patches (B, N, D), prefix (B, P, D)) -> (patches (B, N, C), prefix (B, P, C)).

    reads_all: whether D is the channels of all taps, one after the other, instead of the tap's own C.
    spatial: whether it looks at neighbouring patches too; it is then told the grid (h, w), N = h * w.
    """

    reads_all: bool = False
    spatial: bool = False

    @abstractmethod
    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""

    def maps(self) -> TokenMaps | None:
        """The affine maps that it consists of; None where it is not affine in each token alone."""
        return None
