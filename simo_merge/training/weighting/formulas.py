"""Weights that are a formula of this step's losses, or of nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, reciprocal


@dataclass(frozen=True)
class Equal(LossWeighting):
    """The sum of the losses: w_t = 1."""

    name: ClassVar[str] = "equal"

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """Ones, (T,)."""
        return torch.ones_like(losses)


@dataclass(frozen=True)
class RandomWeights(LossWeighting):
    """Random loss weighting: w = T softmax(z), z drawn anew each step from a standard normal.

    Source: arXiv 2111.10603, section 3.1.
    """

    name: ClassVar[str] = "rlw"

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """T softmax(z), (T,)."""
        drawn = torch.randn(len(losses), dtype=torch.float64, generator=step.generator)
        return len(losses) * torch.softmax(drawn, dim=0)


@dataclass(frozen=True)
class ScaleInvariant(LossWeighting):
    """The sum of the logarithms of the losses: Σ log L_t, that is w_t = 1 / L_t.

    No unit of a loss changes the gradient. A loss of 0 (no label in the batch) is left out.

    Source: the baseline SI of arXiv 2202.01017 (section 5) and 2306.03792.
    """

    name: ClassVar[str] = "si"

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """1 / L, (T,)."""
        return reciprocal(losses)


@dataclass(frozen=True)
class Geometric(LossWeighting):
    """Geometric loss: T (Π L_t)^(1/T), that is w_t = (Π L_s)^(1/T) / L_t.

    Losses of 0 (no label in the batch) are left out of product and T.

    Source: arXiv 1904.08492, equation 3; the factor T keeps equal losses at w_t = 1.
    """

    name: ClassVar[str] = "gls"

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """Geometric mean over L_t, (T,)."""
        present = losses[losses > 0]
        mean = present.log().mean().exp() if len(present) else losses.new_zeros(())
        return mean * reciprocal(losses)
