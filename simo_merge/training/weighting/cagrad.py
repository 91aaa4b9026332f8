"""CAGrad: the direction near the mean gradient that helps the task it helps least the most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.training.weighting.base import State
from simo_merge.training.weighting.jacobian import GramianMethod, among_present
from simo_merge.training.weighting.quadratic import nonnegative_minimum

_STEPS = 60  # about five are needed


@dataclass(frozen=True)
class CaGrad(GramianMethod):
    """Conflict-averse gradient: T d, d the maximum of min_t <g_t, d> subject to ‖d - g_0‖ <= c ‖g_0‖.

    d = g_0 + c ‖g_0‖ g_w / ‖g_w‖, g_0 the mean gradient and g_w = Σ w_t g_t with the w on the simplex that makes
    <g_w, g_0> + c ‖g_0‖ ‖g_w‖ smallest.

    c: radius of the ball, relative to ‖g_0‖: 0 is the mean, 1 approaches MGDA.

    Source: Liu et al., arXiv 2110.14048, equation 4 and algorithm 1; c 0.4 is theirs on NYUv2.
    """

    name: ClassVar[str] = "cagrad"
    c: float = 0.4

    def __post_init__(self) -> None:
        self._positive("c", zero=True)
        if self.c >= 1:
            raise SimoError(f"the c of cagrad must be below 1, where its steps are known to converge; got {self.c}")

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """1 + T c ‖g_0‖ w / ‖g_w‖, (T,)."""
        return among_present(gramian, losses, self._averse)

    def _averse(self, gramian: Tensor, losses: Tensor) -> Tensor:
        count = len(losses)
        inner = gramian.mean(dim=1)  # <g_t, g_0>
        radius = self.c * math.sqrt(max(float(inner.mean()), 0.0))
        if radius == 0:
            return torch.ones_like(losses)
        simplex, length = worst_mixture(gramian, inner, radius)
        least = 1e-8 * math.sqrt(float(gramian.diagonal().mean()))  # no mixture is 0 long: any direction would do
        return 1 + count * radius * simplex / max(length, least)


def worst_mixture(gramian: Tensor, inner: Tensor, radius: float) -> tuple[Tensor, float]:
    """The w on the simplex that minimises b'w + r √(w'Gw), and √(w'Gw).

    The root is the minimum over s > 0 of (w'Gw / s + s) / 2, which makes the problem jointly convex: for a given s it
    is a quadratic program, and the s to be found is the one with s = √(w(s)'Gw(s)). √(w(s)'Gw(s)) / s falls with s,
    so its logarithm is followed to 0 by false position (the Illinois variant) over log s.

    Args:
        gramian: G (T, T).
        inner: b (T,).
        radius: r > 0.
    """

    def mixture(place: float) -> tuple[Tensor, float]:
        weights = nonnegative_minimum(gramian * (radius / math.exp(place)), inner, on_simplex=True)
        return weights, math.sqrt(max(float(weights @ gramian @ weights), 0.0))

    high = math.log(float(gramian.diagonal().max())) / 2  # no mixture is longer than the longest gradient
    low = high - 20
    weights, length = mixture(low)
    if length <= math.exp(low):
        return weights, length  # Pareto stationary: a mixture of length 0
    at_low, at_high = math.log(length) - low, min(math.log(mixture(high)[1]) - high, 0.0)
    side = 0
    for _ in range(_STEPS):
        place = (low * at_high - high * at_low) / (at_high - at_low)
        weights, length = mixture(place)
        excess = math.log(length) - place
        if abs(excess) < 1e-10:
            break
        if excess > 0:
            low, at_low, at_high, side = place, excess, at_high / (2 if side == 1 else 1), 1
        else:
            high, at_high, at_low, side = place, excess, at_low / (2 if side == -1 else 1), -1
    return weights, length
