"""Aligners: small per-task modules between the taps and a decoder.

An aligner maps merged features towards the features that the task's expert would have had. It sits after the
taps, so one encoder pass serves every task. How aligners are fitted is the business of `simo_merge.realign`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.encoder import Taps


class TapAligner(nn.Module, ABC):
    """Aligns one tap: (patches (B, N, C), prefix (B, P, C)) -> the same shapes."""

    @abstractmethod
    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""


class SurgeryTap(TapAligner):
    """Representation surgery: Z - W_up ReLU(W_down Z), without biases; patches and prefix tokens share it.

    W_up starts at zero, so a fresh module is the identity.

    Source: arXiv 2402.02705, equation 4.
    """

    def __init__(self, channels: int, prefix_tokens: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, rank, bias=False)
        self.up = nn.Linear(rank, channels, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return patches - self._bias(patches), prefix - self._bias(prefix)

    def _bias(self, tokens: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(tokens)))  # type: ignore[no-any-return]


class LinearSurgeryTap(TapAligner):
    """Linear surgery of rank r: Z + W_up (W_down Z) + b.

    The map is shared by all tokens; the offset b is one for the patches and one for each prefix token, because
    their means differ.
    """

    def __init__(self, channels: int, prefix_tokens: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, rank, bias=False)
        self.up = nn.Linear(rank, channels, bias=False)
        self.patch_offset = nn.Parameter(torch.zeros(channels))
        self.prefix_offset = nn.Parameter(torch.zeros(prefix_tokens, channels))
        nn.init.zeros_(self.up.weight)

    def forward(self, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned patches and prefix tokens."""
        return (
            patches + self.up(self.down(patches)) + self.patch_offset,
            prefix + self.up(self.down(prefix)) + self.prefix_offset,
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


TAP_ALIGNERS: dict[str, type[TapAligner]] = {
    "surgery": SurgeryTap,
    "linear-surgery": LinearSurgeryTap,
    "affine": AffineTap,
}


class Aligner(nn.Module):
    """One tap aligner a tap: `Taps` -> `Taps` of the same shapes.

    Args:
        kind: a key of `TAP_ALIGNERS`.
        tap_channels: channels of each tap.
        prefix_tokens: how many prefix tokens there are.
        options: further arguments of the tap aligner (`rank`).

    Raises:
        SimoError: an unknown kind, or options that it does not have.
    """

    def __init__(self, kind: str, tap_channels: Sequence[int], prefix_tokens: int, **options: Any) -> None:
        super().__init__()
        if kind not in TAP_ALIGNERS:
            raise SimoError(f"unknown aligner {kind!r}; known: {', '.join(sorted(TAP_ALIGNERS))}")
        self.config = {
            "kind": kind,
            "tap_channels": list(tap_channels),
            "prefix_tokens": prefix_tokens,
            **options,
        }
        try:
            self.taps = nn.ModuleList(TAP_ALIGNERS[kind](c, prefix_tokens, **options) for c in tap_channels)
        except TypeError as error:
            raise SimoError(f"the options of aligner {kind!r} do not fit: {error}") from error

    def forward(self, taps: Taps) -> Taps:
        """Aligned taps."""
        maps, prefixes = [], []
        for module, tap_map, prefix in zip(self.taps, taps.maps, taps.prefix, strict=True):
            patches = tap_map.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h*w, C)
            patches, prefix = module(patches, prefix)
            maps.append(patches.transpose(1, 2).reshape(tap_map.shape))
            prefixes.append(prefix)
        return Taps(tuple(maps), tuple(prefixes))


def aligner_from_config(config: Mapping[str, Any]) -> Aligner:
    """The aligner that `config` (see `Aligner.config`) describes, with fresh weights.

    Raises:
        SimoError: as `Aligner`, or a part of the config that is missing.
    """
    try:
        return Aligner(**config)
    except TypeError as error:
        raise SimoError(f"{dict(config)} does not describe an aligner: {error}") from error
