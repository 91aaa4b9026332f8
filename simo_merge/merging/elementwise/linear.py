"""Merges that are linear in the task vectors, with coefficients known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.pieces import merge_elementwise
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import Scale, coefficients, finite, for_tasks, scale_of
from simo_merge.merging.parameter import Parameter


def weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_t w_t tau_t; the first vector is overwritten with it."""
    total = vectors[0].mul_(weights[0])
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total.add_(vector, alpha=weight)
    return total


@dataclass(frozen=True)
class WeightAverage(MergeMethod):
    """The mean of the experts: theta_0 + (1/T) sum_t tau_t."""

    name: ClassVar[str] = "weight-average"

    @property
    def by_entry(self) -> bool:
        """Always."""
        return True

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        weights = (1 / parameter.count,) * parameter.count
        return merge_elementwise(parameter, lambda vectors, _: weighted_sum(vectors, weights))


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """Task arithmetic: theta_0 + sum_t s_t tau_t.

    scale: the scaling coefficient s of all tasks; 0.3 is the value recommended without any data. 0 gives the base,
    1/T the weight average. A tuple gives each task its own, in the order of the experts; a tuple of tuples, one row
    for each layer (`Parameter.layer`: before the blocks, each block, after them), each layer and task.

    Raises:
        SimoError: a scale that is not finite or, when the experts are seen, of another number of tasks or layers.

    Source: Ilharco et al., arXiv 2212.04089; coefficients by layer and task as in Yang et al., arXiv 2310.02575.
    """

    name: ClassVar[str] = "task-arithmetic"
    scale: Scale = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", scale_of(self.name, self.scale))

    @property
    def by_entry(self) -> bool:
        """Always."""
        return True

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        weights = coefficients(self.name, self.scale, parameter)
        return merge_elementwise(parameter, lambda vectors, _: weighted_sum(vectors, weights))


@dataclass(frozen=True)
class PreferenceSoup(MergeMethod):
    """Experts interpolated by preference: theta_0 + sum_t w_t tau_t = sum_t w_t theta_t, w on the simplex.

    weights: how much each task matters, in the order of the experts; they are divided by their sum. None: all alike,
    which is the weight average.

    Raises:
        SimoError: weights that are negative, not finite or all zero or, when the experts are seen, of another number.

    Source: rewarded soups, Rame et al., arXiv 2306.04488.
    """

    name: ClassVar[str] = "preference-soup"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        weights = tuple(finite(self.name, "weights", weight) for weight in self.weights)
        if not weights or min(weights) < 0 or sum(weights) == 0:
            raise SimoError(
                f"the weights of {self.name} must not be negative, nor all zero, got {list(weights)}; give each task "
                "its share, or use task-arithmetic to subtract"
            )
        object.__setattr__(self, "weights", weights)

    @property
    def by_entry(self) -> bool:
        """Always."""
        return True

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        given = for_tasks(self.name, "weights", self.weights or 1.0, parameter.count)
        shares = [weight / sum(given) for weight in given]
        return merge_elementwise(parameter, lambda vectors, _: weighted_sum(vectors, shares))
