"""Small convex quadratic programs, solved exactly: what several gradient methods come down to."""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 1e-10


def nonnegative_minimum(matrix: Tensor, linear: Tensor, on_simplex: bool) -> Tensor:
    """The w that minimises w'Hw / 2 + b'w subject to w >= 0 and, if told, Σ w = 1.

    An active-set method: the set of positive entries grows by the one whose gradient is most wrong, and loses those
    that the minimum on the set would make negative. It ends after finitely many steps, at the minimum. A singular H is
    taken for one with 1e-12 of its mean diagonal added.

    Args:
        matrix: H (T, T), symmetric and positive semidefinite, float64.
        linear: b (T,), float64.
        on_simplex: Whether Σ w = 1.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    size = len(linear)
    scale = float(matrix.diagonal().mean())
    scale = max(scale, float(linear.abs().max()), torch.finfo(torch.float64).tiny)
    hessian = matrix / scale + 1e-12 * torch.eye(size, dtype=matrix.dtype)
    slope = linear / scale
    weights = torch.zeros(size, dtype=matrix.dtype)
    free = torch.zeros(size, dtype=torch.bool)
    if on_simplex:
        start = int((hessian.diagonal() / 2 + slope).argmin())
        weights[start], free[start] = 1.0, True
    for _ in range(4 * 2 ** min(size, 12)):  # every set occurs once at most; in practice a few times T
        gradient = hessian @ weights + slope
        level = gradient[free].mean() if on_simplex else 0.0
        wrong = torch.where(free, 0.0, gradient - level)
        worst = int(wrong.argmin())
        if wrong[worst] >= -_TOLERANCE:
            break
        free[worst] = True
        weights = _minimum_on(hessian, slope, weights, free, on_simplex)
        free = weights > 0
    return weights


def _minimum_on(hessian: Tensor, slope: Tensor, weights: Tensor, free: Tensor, on_simplex: bool) -> Tensor:
    """From feasible weights to the minimum on the free set, or on what is left of it when entries reach 0."""
    free = free.clone()
    while True:
        target = torch.zeros_like(weights)
        target[free] = _stationary(hessian[free][:, free], slope[free], on_simplex)
        blocking = free & (target <= 0)
        if not blocking.any():
            return target
        reach = weights[blocking] / (weights[blocking] - target[blocking])
        weights = weights + reach.min() * (target - weights)
        weights[blocking.nonzero()[reach.argmin()]] = 0.0
        free &= weights > 0


def _stationary(hessian: Tensor, slope: Tensor, on_simplex: bool) -> Tensor:
    """The point where the gradient is 0, or on the plane Σ w = 1 the same for all entries."""
    if not on_simplex:
        minimum: Tensor = torch.linalg.solve(hessian, -slope)
        return minimum
    size = len(slope)
    system = torch.ones(size + 1, size + 1, dtype=hessian.dtype)
    system[:size, :size], system[size, size] = hessian, 0.0
    point: Tensor = torch.linalg.solve(system, torch.cat([-slope, slope.new_ones(1)]))
    return point[:size]  # without the multiplier
