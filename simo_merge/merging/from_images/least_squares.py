"""Weighted least squares for the weights of linear layers: the normal equations of RegMean, LOT, MaTS and WUDI."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.errors import SimoError


@dataclass
class NormalEquations:
    """sum_t G_t and sum_t D_t G_t of the quadratic sum_t tr (D - D_t) G_t (D - D_t)', in float64.

    D and D_t (out, in) are weights, seen from whatever origin the method takes; G_t (in, in) is what task t's inputs
    weigh: X_t' X_t, or a matrix of that kind.
    """

    gram: Tensor
    target: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> NormalEquations:
        """No task yet, for weights (out, in) like these; on their device."""
        wide = like.new_zeros(like.shape, dtype=torch.float64)
        return cls(wide.new_zeros(like.shape[1], like.shape[1]), wide)

    def add(self, gram: Tensor, weight: Tensor) -> None:
        """Add one task's G_t (in, in) and D_t (out, in)."""
        self.gram += gram
        self.target += weight.to(gram) @ gram

    def solve(self, ridge: float) -> Tensor:
        """D = (sum_t D_t G_t) (sum_t G_t + ridge mean-eigenvalue I)^-1, (out, in).

        What no task's inputs reach (dead channels, fewer tokens than channels) stays at the origin, 0.

        Raises:
            SimoError: a ridge too small for what the inputs say.
        """
        ridged = self.gram.clone()
        mean = ridged.diagonal().mean()
        ridged.diagonal().add_(ridge * mean + (mean == 0))  # no input at all: anything solves to zero
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if failed:
            raise SimoError(
                f"with a ridge of {ridge:g} the least squares of a layer with {len(ridged)} inputs are singular: too "
                "few directions are reached; raise ridge, for example to 1e-6"
            )
        return torch.cholesky_solve(self.target.mT, factor).mT
