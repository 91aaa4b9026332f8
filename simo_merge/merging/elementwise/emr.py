"""EMR: elect one vector, mask it for every task, rescale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.merging.elementwise.pieces import map_spans, merge_elementwise, merge_elementwise_for_tasks, vectors_of
from simo_merge.merging.elementwise.ties import agreeing, elect
from simo_merge.merging.method import TaskSpecificMethod
from simo_merge.merging.parameter import Parameter, Parameters


def unify(vectors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """tau_uni (n,), and every task's magnitudes where its sign is the elected one; the vectors are overwritten."""
    signs = elect(vectors, "mass")
    magnitudes = agreeing(vectors, signs)
    largest = magnitudes[0].clone()
    for own in magnitudes[1:]:
        torch.maximum(largest, own, out=largest)
    return largest.mul_(signs), magnitudes


@dataclass(frozen=True)
class Emr(TaskSpecificMethod):
    """EMR-Merging: every task has theta_0 + lambda_t (m_t * tau_uni).

    Elect: tau_uni has the sign gamma = sgn(sum_t tau_t) and the largest magnitude among the tau_t of that sign; where
    they cancel exactly it is 0. Mask: m_t = 1 where tau_t * tau_uni > 0. Rescale: lambda_t = sum |tau_t| /
    sum |m_t * tau_uni|, both over all parameters; 1 where the mask is empty. The masked encoder has to be run once for
    every task.

    Source: Huang et al., arXiv 2405.17461.
    """

    name: ClassVar[str] = "emr"

    def statistics(self, parameters: Parameters) -> Tensor:
        """lambda_t (T,), in float64; one pass."""
        sums: Tensor | None = None
        for parameter in parameters():
            for seen in _sums(parameter):
                sums = seen if sums is None else sums + seen
        if sums is None:
            return torch.ones(0, dtype=torch.float64)
        own, masked = sums
        return torch.where(masked > 0, own / masked.clamp(min=torch.finfo(torch.float64).tiny), 1.0)

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> theta_0 + tau_uni (...)."""
        return merge_elementwise(parameter, lambda vectors, _: unify(vectors)[0])

    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        """theta_0 (...), theta_t (...) -> every task's own (T, ...)."""
        rescalers = [float(value) for value in statistics]

        def updates(vectors: list[Tensor], _: slice) -> list[Tensor]:
            unified, magnitudes = unify(vectors)
            masked = [unified * (own > 0) for own in magnitudes]
            return [vector.mul_(rescaler) for vector, rescaler in zip(masked, rescalers, strict=True)]

        return merge_elementwise_for_tasks(parameter, updates)


def _sums(parameter: Parameter) -> list[Tensor]:
    """sum |tau_t| and sum |m_t * tau_uni| of every span: (2, T), in float64."""
    vectors_in = vectors_of(parameter)

    def sums(span: slice) -> Tensor:
        vectors = vectors_in(span)
        own = [vector.abs().sum(dtype=torch.float64) for vector in vectors]
        unified, magnitudes = unify(vectors)
        unified.abs_()
        masked = [(unified * (magnitude > 0)).sum(dtype=torch.float64) for magnitude in magnitudes]
        return torch.stack([torch.stack(own), torch.stack(masked)]).cpu()

    return map_spans(sums, parameter.base.numel(), parameter.base.device)
