"""MaTS: merging as a linear system of the tasks' subspaces, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from simo_merge.merging.from_images.kfac import KroneckerFactors, kronecker_factors
from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.from_images.regmean import GramFit, damped, mean_state
from simo_merge.merging.method import MergeData
from simo_merge.merging.options import one_of, whole

Covariance = Literal["inputs", "kfac"]
_CONVERGED = 1e-12  # residual relative to where it started; below it steps are rounding


@dataclass(frozen=True)
class Subspace(GramFit):
    """MaTS: experts matched in the subspace of each task, by a few steps of conjugate gradients from their average.

    The merged weights W (out, in) solve sum_t C_t (W - W_t) = 0 for covariances C_t of the tasks:

        "inputs": C_t = I (x) A_t,      W sum_t A_t = sum_t W_t A_t
        "kfac":   C_t = S_t (x) A_t,    sum_t S_t W A_t = sum_t S_t W_t A_t

    A_t (in, in) is the Gram matrix of what reaches the layer, as in RegMean, and S_t (out, out) that of the gradients
    of -log p_t(y | x) with respect to what it gives, y drawn from p_t itself: together the block-diagonal Fisher
    information, in its Kronecker-factored form. No label is read.

    Conjugate gradients start from mean_t W_t and take at most `iterations` steps on a whole matrix: the directions that
    matter most to the tasks converge first, the others stay near the average. With "inputs" and many steps it is
    RegMean without a ridge. All other parameters are averaged.

    iterations: 0 is the average; the paper chooses 10 to 100 on a validation split.
    off_diagonal: as in RegMean, for A_t and S_t; the paper's lambda, 0.9 here, 1 is the Gram matrix itself.
    covariance: "inputs" or "kfac". The latter holds both factors of every expert (ViT-S: 0.3 GB each) and takes one
        gradient for each image.
    images: ("kfac") at most this many are read, the first of the data set.
    normalise: ("kfac") divide S_t by the mean of the diagonal of S_t (x) A_t over the encoder. Ours, as in Fisher
        merging: losses of dense tasks have gradients of different units, and the largest would decide alone.

    Raises:
        SimoError: an option out of range; when it sees images, NaN in what reaches a layer or in a gradient.

    Source: Tam et al., arXiv 2312.04339, and the authors' code (`cg_forward` and `cg_forwardBackward`, started at the
    average).
    """

    name: ClassVar[str] = "mats"
    iterations: int = 100
    off_diagonal: float = 0.9
    covariance: Covariance = "inputs"
    images: int = 256
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "iterations", whole(self.name, "iterations", self.iterations, least=0))
        one_of(self.name, "covariance", self.covariance, get_args(Covariance))
        object.__setattr__(self, "images", whole(self.name, "images", self.images, least=1))

    def observe(self, given: MergeData) -> dict[str, Tensor]:
        """The merged weights of the linear layers, by name."""
        if self.covariance == "inputs":
            return super().observe(given)
        mean = mean_state([expert.encoder for expert in given.experts])
        factors = [kronecker_factors(expert, given, self.images) for expert in given.experts]
        sizes = [found.mean_square() if self.normalise else 1.0 for found in factors]
        states = [expert.encoder.vit.state_dict() for expert in given.experts]
        merged = {}
        for name in dict.fromkeys(name for found in factors for name in found.gradients):
            moved = [state[name].to(given.device).double() - mean[name].to(given.device).double() for state in states]
            pairs = [self._pair(found, name, size, moved[0]) for found, size in zip(factors, sizes, strict=True)]
            step = matched(pairs, moved, self.iterations)
            merged[name] = (mean[name].double() + step.to(mean[name].device)).to(mean[name].dtype)
        return merged

    def fitted(self, equation: NormalEquations, mean: Tensor) -> Tensor:
        """The merged weight (out, in)."""
        moved = conjugate_gradients(lambda step: step @ equation.gram, equation.target, self.iterations)
        return (mean.double() + moved.to(mean.device)).to(mean.dtype)

    def _pair(self, found: KroneckerFactors, name: str, size: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """S_t (out, out) and A_t (in, in) as they enter the system, of the type and on the device of a weight."""
        if name not in found.gradients:  # no prediction of this task depends on the layer
            out, into = like.shape
            return like.new_zeros(out, out), like.new_zeros(into, into)
        gradients, inputs = found.gradients[name].to(like), found.inputs[name].to(like)
        return damped(gradients / (size or 1.0), self.off_diagonal), damped(inputs, self.off_diagonal)


def matched(factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor], iterations: int) -> Tensor:
    """At most `iterations` steps from 0 towards the D (out, in) with sum_t S_t D A_t = sum_t S_t D_t A_t.

    Args:
        factors: S_t (out, out) and A_t (in, in) of every task.
        weights: D_t (out, in).
        iterations: of conjugate gradients.
    """

    def weighed(steps: Sequence[Tensor]) -> Tensor:
        parts = [outer @ step @ inner for (outer, inner), step in zip(factors, steps, strict=True)]
        return torch.stack(parts).sum(dim=0)

    return conjugate_gradients(lambda step: weighed([step] * len(factors)), weighed(weights), iterations)


def conjugate_gradients(apply: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """At most `iterations` steps from 0 towards apply(D) = target, for a linear, positive semidefinite map of D."""
    found = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    size = first = residual.square().sum()
    for _ in range(iterations):
        if size <= _CONVERGED**2 * first:
            break
        pushed = apply(direction)
        curvature = (direction * pushed).sum()
        if curvature <= 0:  # rounding, where the inputs say nothing more
            break
        step = size / curvature
        found += step * direction
        residual -= step * pushed
        before, size = size, residual.square().sum()
        direction = residual + (size / before) * direction
    return found
