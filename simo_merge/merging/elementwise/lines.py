"""LiNeS: a merge that grows with depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.pieces import map_spans, vectors_of
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod
from simo_merge.merging.options import finite
from simo_merge.merging.parameter import Parameter, Parameters


@dataclass(frozen=True)
class Lines(MergeMethod):
    """LiNeS: layer l of another method's merge is scaled: theta_0 + (alpha + beta l / (L - 1)) tau_MTL.

    l = 0, ..., L - 1 counts the L blocks; what comes before and after them is scaled by alpha, as in the published
    code. Shallow layers, which serve all tasks, stay near the base; deep ones go further.

    alpha: None is the paper's value for several tasks, (1/T) ||sum_t tau_t||_1 / ||tau_MTL||_1, of all parameters; for
    task arithmetic that is 1/T. It costs one more merge. beta: the growth from the first block to the last; the paper
    chooses it on a validation split, like the scaling coefficient whose place it takes. method: name of the method that
    gives tau_MTL, with its options; its `scale` is 1 unless they say otherwise, because the schedule takes its place.

    Raises:
        SimoError: numbers that are not finite; an unknown method, or options that it refuses; a method that learns from
            images or gives every task an encoder of its own.

    Source: Wang et al., arXiv 2410.17146, and the published code.
    """

    name: ClassVar[str] = "lines"
    alpha: float | None = None
    beta: float = 0.3
    method: str = "task-arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.alpha is not None:
            object.__setattr__(self, "alpha", finite(self.name, "alpha", self.alpha))
        object.__setattr__(self, "beta", finite(self.name, "beta", self.beta))
        if not isinstance(self.options, Mapping):
            raise SimoError(f"the options of {self.name} are the options of {self.method} by name, got {self.options}")
        object.__setattr__(self, "options", dict(self.options))
        if isinstance(self.scaled, DataMergeMethod):
            raise SimoError(
                f"{self.name} scales a merge of weights alone, but {self.method} learns from images; take another"
            )
        if isinstance(self.scaled, TaskSpecificMethod):
            raise SimoError(
                f"{self.name} scales a merge that all tasks share, but {self.method} gives every task its own; take "
                "another"
            )

    @cached_property
    def scaled(self) -> MergeMethod:
        """The method whose merge is scaled."""
        from simo_merge.merging.registry import MERGE_METHODS, merge_method  # it lists this class too

        known = MERGE_METHODS.get(self.method)
        has_scale = known is not None and any(option.name == "scale" for option in fields(known))  # type: ignore[arg-type]
        return merge_method(self.method, {"scale": 1.0, **self.options} if has_scale else self.options)

    def statistics(self, parameters: Parameters) -> tuple[Any, float]:
        """What the method needs, and alpha."""
        inner = self.scaled.statistics(parameters)
        if self.alpha is not None:
            return inner, self.alpha
        summed = merged = 0.0
        for parameter in parameters():
            count = parameter.count
            result = self.scaled.merge(parameter, inner)
            summed += _absolute_sum(parameter)
            merged += _absolute_sum(Parameter(parameter.name, parameter.base, (result,)))
        return inner, summed / merged / count if merged > 0 else 1.0  # nothing was merged: nothing to scale

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        inner, alpha = statistics
        merged = self.scaled.merge(parameter, inner)
        return torch.lerp(parameter.base, merged, alpha + self.beta * _depth(parameter))

    def record(self, statistics: tuple[Any, float]) -> dict[str, Any]:
        """The options, with the alpha that was used."""
        return {**self.parameters(), "alpha": statistics[1]}


def _depth(parameter: Parameter) -> float:
    """l / (L - 1) of a block, 0 for what lies before and after the blocks."""
    blocks = parameter.layers - 2
    inside = 1 <= parameter.layer <= blocks
    return (parameter.layer - 1) / (blocks - 1) if inside and blocks > 1 else 0.0


def _absolute_sum(parameter: Parameter) -> float:
    """||sum_t tau_t||_1."""
    vectors_in = vectors_of(parameter)

    def absolute(span: slice) -> float:
        first, *others = vectors_in(span)
        for vector in others:
            first.add_(vector)
        return float(first.abs_().sum(dtype=torch.float64))

    return sum(map_spans(absolute, parameter.base.numel(), parameter.base.device))
