"""Merge methods: each a small typed object around a pure function on one parameter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.parameter import Parameter, Parameters


class MergeMethod(ABC):
    """Maps one parameter of base and experts to the merged one; a frozen dataclass whose fields are its options.

    To add a method: a file with such a class, and its entry in `MERGE_METHODS`.
    """

    name: ClassVar[str]

    def statistics(self, parameters: Parameters) -> Any:
        """What `merge` must know of all parameters together; a method that needs nothing makes no pass.

        Args:
            parameters: Makes a pass over all parameters, in a fixed order.
        """
        return None

    @abstractmethod
    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        """The merged parameter, of the shape and type of `parameter.base`, which it must not change.

        Args:
            parameter: Base and experts.
            statistics: What `statistics` returned.
        """

    def parameters(self) -> dict[str, Any]:
        """The options, as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every method is a dataclass


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


MERGE_METHODS: dict[str, type[MergeMethod]] = {m.name: m for m in (WeightAverage, TaskArithmetic)}


def merge_method(name: str, parameters: Mapping[str, Any] | None = None) -> MergeMethod:
    """The method of this name with these parameters.

    Raises:
        SimoError: an unknown name (the known ones are listed) or a parameter that the method does not have.
    """
    if name not in MERGE_METHODS:
        raise SimoError(f"unknown merge method {name!r}; known: {', '.join(sorted(MERGE_METHODS))}")
    try:
        return MERGE_METHODS[name](**(parameters or {}))
    except TypeError as error:
        raise SimoError(f"merge method {name!r} does not take {dict(parameters or {})}: {error}") from error
