"""WUDI-Merging: the merged task vector that disturbs the inputs each task vector tells of the least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.options import above_zero, one_of, whole
from simo_merge.merging.spectral.svd import MatrixMethod

Solver = Literal["adam", "exact"]


@dataclass(frozen=True)
class Wudi(MatrixMethod):
    """WUDI-Merging: task vectors stand in for the inputs of their layer, and the interference there is minimised.

    For each matrix (m, n) the merged task vector tau is to minimise

        L(tau) = sum_t ||(tau - tau_t) tau_t'||^2 / ||tau_t||^2,

    starting from sum_t tau_t. L is quadratic: with A_t = tau_t' tau_t / ||tau_t||^2, H = sum_t A_t and
    B = sum_t tau_t A_t its gradient is 2 (tau H - B), which is all that the steps need, and its minimum is B H^-1.
    Parameters that are no matrices are averaged.

    solver: "adam" takes the paper's `steps` with Adam. "exact" is the minimum itself, B (H + ridge I tr(H)/n)^-1. They
        are not the same merge: the paper's steps move no weight by more than steps * learning_rate and stop before
        the weakest directions of H have moved, which leaves those near the sum of the task vectors.
    steps: of Adam; the paper uses 300.
    learning_rate: of Adam; the paper uses 1e-5.
    ridge: relative to the mean eigenvalue of H, for "exact"; H is singular when T m < n.
    scale: of the merged task vector; the paper uses 1.

    Raises:
        SimoError: an unknown solver, or a step count, learning rate, ridge or scale out of range.

    Source: Cheng et al., arXiv 2503.08099; steps and start as in fusion_bench's port of the authors' code.
    """

    name: ClassVar[str] = "wudi"
    solver: Solver = "adam"
    steps: int = 300
    learning_rate: float = 1e-5
    ridge: float = 1e-6
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.name, "solver", self.solver, get_args(Solver))
        object.__setattr__(self, "steps", whole(self.name, "steps", self.steps, least=0))
        object.__setattr__(self, "learning_rate", above_zero(self.name, "learning rate", self.learning_rate))
        object.__setattr__(self, "ridge", above_zero(self.name, "ridge", self.ridge))

    def merge_matrix(self, vectors: Tensor) -> Tensor:
        """tau (T, m, n) -> the merged task vector (m, n)."""
        equations = _quadratic(vectors)
        if self.solver == "exact":
            return equations.solve(self.ridge)
        return self._descend(vectors.sum(dim=0), equations.gram.to(vectors), equations.target.to(vectors))

    def _descend(self, start: Tensor, hessian: Tensor, target: Tensor) -> Tensor:
        merged = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([merged], lr=self.learning_rate)
        for _ in range(self.steps):
            merged.grad = 2 * (merged.detach() @ hessian - target)
            optimiser.step()
        return merged.detach()


def _quadratic(vectors: Tensor) -> NormalEquations:
    """H (n, n) and B (m, n) of the loss; a task vector of zeros asks for nothing."""
    equations = NormalEquations.empty(vectors[0])
    for vector in vectors.double():
        size = torch.linalg.vector_norm(vector)
        if size > 0:
            unit = vector / size
            equations.add(unit.T @ unit, vector)
    return equations
