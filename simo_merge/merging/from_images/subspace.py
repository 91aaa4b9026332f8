"""MaTS: merging as a linear system of the tasks' subspaces, solved by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.from_images.regmean import GramFit
from simo_merge.merging.options import whole

_CONVERGED = 1e-12  # residual relative to where it started; below it steps are rounding


@dataclass(frozen=True)
class Subspace(GramFit):
    """MaTS: experts matched in the subspace of each task, by a few steps of conjugate gradients from their average.

    The merged weights W solve sum_t C_t (W - W_t) = 0 for covariances C_t of the tasks. With the input Gram matrices
    G_t of RegMean, C_t = G_t (x) I and the system is

        W sum_t G_t = sum_t W_t G_t.

    Conjugate gradients start from mean_t W_t and take at most `iterations` steps on all rows of W together: the
    directions that matter most to the tasks converge first, the others stay near the average. With many steps it is
    RegMean without a ridge. All other parameters are averaged.

    iterations: 0 is the average; the paper chooses 10 to 100 on a validation split.
    off_diagonal: as in RegMean; the paper's lambda, 0.9 here, 1 is the Gram matrix itself.

    Raises:
        SimoError: an option out of range; when it sees images, NaN in what reaches a layer.

    Source: Tam et al., arXiv 2312.04339, and the authors' code (`cg_forward`, started at the average).
    """

    name: ClassVar[str] = "mats"
    iterations: int = 100
    off_diagonal: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "iterations", whole(self.name, "iterations", self.iterations, least=0))

    def fitted(self, equation: NormalEquations, mean: Tensor) -> Tensor:
        """The merged weight (out, in)."""
        moved = conjugate_gradients(equation.gram, equation.target, self.iterations)
        return (mean.double() + moved.to(mean.device)).to(mean.dtype)


def conjugate_gradients(gram: Tensor, target: Tensor, iterations: int) -> Tensor:
    """At most `iterations` steps from 0 towards D gram = target; gram (in, in) positive semidefinite, D (out, in)."""
    found = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    size = first = residual.square().sum()
    for _ in range(iterations):
        if size <= _CONVERGED**2 * first:
            break
        pushed = direction @ gram
        curvature = (direction * pushed).sum()
        if curvature <= 0:  # rounding, where the inputs say nothing more
            break
        step = size / curvature
        found += step * direction
        residual -= step * pushed
        before, size = size, residual.square().sum()
        direction = residual + (size / before) * direction
    return found
