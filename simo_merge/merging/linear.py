"""Merges that are linear in the task vectors, with coefficients known beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.parameter import Parameter


@dataclass(frozen=True)
class WeightAverage(MergeMethod):
    """The mean of the experts: theta_0 + (1/T) sum_t tau_t."""

    name: ClassVar[str] = "weight-average"

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        return parameter.base + parameter.vectors.mean(dim=0)


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """Task arithmetic: theta_0 + scale * sum_t tau_t.

    scale: the scaling coefficient; 0.3 is the value recommended without any data. 0 gives the base, 1/T the
    weight average.

    Raises:
        SimoError: a scale that is not finite.

    Source: Ilharco et al., arXiv 2212.04089.
    """

    name: ClassVar[str] = "task-arithmetic"
    scale: float = 0.3

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise SimoError(f"the scale of task arithmetic must be a finite number, got {self.scale}")

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        return parameter.base + self.scale * parameter.vectors.sum(dim=0)
