"""Means and deviations of what a LayerNorm gives, channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDING = 1e-12  # of a channel's sum of squares: what float32 values leave of a constant


@dataclass
class ChannelSums:
    """Sums over tokens and sums of squares of each channel, float64, for the patches and each prefix token apart."""

    prefix: int
    counts: list[int] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """Take up values (..., N, C), prefix tokens first; what comes before N (images, heads) is pooled."""
        groups = [values[..., self.prefix :, :], *(values[..., i : i + 1, :] for i in range(self.prefix))]
        tokens = [group.flatten(0, -2).double() for group in groups]  # -> (n, C)
        if not self.counts:
            zeros = tokens[0].new_zeros(tokens[0].shape[1])
            self.counts, self.sums, self.squares = [0] * len(tokens), [zeros] * len(tokens), [zeros] * len(tokens)
        for index, found in enumerate(tokens):
            self.counts[index] += len(found)
            self.sums[index] = self.sums[index] + found.sum(0)
            self.squares[index] = self.squares[index] + found.square().sum(0)

    def mean_and_deviation(self, prefix_weight: float) -> tuple[Tensor, Tensor]:
        """Mean of the groups' means and deviation within the groups, (C,), a prefix token counting for so many patches.

        Channels that never vary have a deviation of exactly 0.
        """
        masses = [count * weight for count, weight in zip(self.counts, self._weights(prefix_weight), strict=True)]
        means = [total / count for total, count in zip(self.sums, self.counts, strict=True)]
        within = torch.zeros_like(self.sums[0])
        for count, total, squares, mass in zip(self.counts, self.sums, self.squares, masses, strict=True):
            scatter = squares - total.square() / count
            within += mass * torch.where(scatter > _ROUNDING * squares, scatter, 0.0) / count
        mean = torch.stack([mass * mean for mass, mean in zip(masses, means, strict=True)]).sum(0)
        return mean / sum(masses), (within / sum(masses)).sqrt()

    def _weights(self, prefix_weight: float) -> list[float]:
        return [1.0] + [prefix_weight] * self.prefix


@contextmanager
def outputs_summed(block: nn.Module, names: Sequence[str], prefix: int) -> Iterator[Mapping[str, ChannelSums]]:
    """Add up what some layers of a block give, each time the block runs."""
    sums = {name: ChannelSums(prefix) for name in names}
    handles = [block.get_submodule(name).register_forward_hook(_adder(sums[name])) for name in names]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _adder(sums: ChannelSums) -> Callable[[nn.Module, Any, Tensor], None]:
    def add(_: nn.Module, __: Any, output: Tensor) -> None:
        sums.add(output)

    return add
