"""Representation surgery, as published and linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simo_merge.models.aligners.base import TapAligner, TokenMaps


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

    def maps(self) -> TokenMaps:
        """I + W_up W_down for all tokens."""
        change = self.up.weight.detach().double() @ self.down.weight.detach().double()
        return shared_maps(change, slice(0, len(change)), self.patch_offset, self.prefix_offset)


def shared_maps(change: Tensor, own: slice, patch_offset: Tensor, prefix_offset: Tensor) -> TokenMaps:
    """The maps of Z + change Z + b, change (C, D), where patches and prefix tokens share the change."""
    matrix = change.clone()
    matrix[:, own] += torch.eye(len(change), dtype=change.dtype, device=change.device)
    return TokenMaps(
        matrix,
        patch_offset.detach().double(),
        matrix.repeat(len(prefix_offset), 1, 1),
        prefix_offset.detach().double(),
    )
