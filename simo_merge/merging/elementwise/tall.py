"""TALL-masks: which entries of the multi-task vector matter to which task; and consensus among the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.pieces import merge_elementwise, merge_elementwise_for_tasks
from simo_merge.merging.elementwise.ties import Ties
from simo_merge.merging.elementwise.trim import Trim
from simo_merge.merging.method import MergeMethod, TaskSpecificMethod
from simo_merge.merging.options import finite, for_tasks, one_of, per_task, whole
from simo_merge.merging.parameter import Parameter, Parameters


@dataclass(frozen=True)
class _Localising(MergeMethod):
    """What TALL-masks and consensus share: the multi-task vector and the masks.

    tau_MTL = sum_t tau_t, or the vector of TIES with "sum"; m_t = 1 where |tau_t| >= lambda_t |tau_MTL - tau_t|.
    """

    lam: float | tuple[float, ...] = 0.4
    vector: str = "task-arithmetic"
    density: float = 0.2

    def __post_init__(self) -> None:
        lam = per_task(self.name, "lam", self.lam)
        if min(lam if isinstance(lam, tuple) else (lam,)) <= 0:
            raise SimoError(f"the lam of {self.name} must be above 0 (the paper tries 0.2 to 0.6), got {lam}")
        object.__setattr__(self, "lam", lam)
        one_of(self.name, "vector", self.vector, ("task-arithmetic", "ties"))
        object.__setattr__(self, "density", Trim(self.density, "global").check(self.name))

    @property
    def _ties(self) -> Ties:
        return Ties(self.density, combine="sum")

    def statistics(self, parameters: Parameters) -> Any:
        """The thresholds of TIES, where its vector is asked for."""
        return self._ties.statistics(parameters) if self.vector == "ties" else None

    def _multi_task(self, vectors: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
        """tau_MTL (n,); the vectors stay as they are."""
        if self.vector == "ties":
            return self._ties.vector([vector.clone() for vector in vectors], thresholds)
        total = vectors[0].clone()
        for vector in vectors[1:]:
            total.add_(vector)
        return total

    def _thresholds(self, parameter: Parameter, statistics: Any) -> list[float]:
        return self._ties.thresholds(parameter, statistics) if self.vector == "ties" else []

    def _masks(self, vectors: Sequence[Tensor], merged: Tensor, parameter: Parameter) -> list[Tensor]:
        """m_t (n,) for every task."""
        lam = for_tasks(self.name, "lam", self.lam, parameter.count)
        return [
            vector.abs() >= torch.sub(merged, vector).abs_().mul_(own) for vector, own in zip(vectors, lam, strict=True)
        ]


@dataclass(frozen=True)
class TallMasks(_Localising, TaskSpecificMethod):
    """TALL-masks: every task has theta_0 + m_t * tau_MTL, m_t = 1 where |tau_t| >= lam_t |tau_MTL - tau_t|.

    tau_MTL is the sum of the task vectors, or that of TIES (disjoint sum). A mask is one bit an entry, but the merged
    encoder has to be run once for every task.

    lam: lambda_t, above 0, one for all tasks or one each, in the order of the experts; smaller keeps more. vector:
    "task-arithmetic" or "ties". density: kept share of TIES.

    Raises:
        SimoError: an option out of range.

    Source: Wang et al., arXiv 2405.07813 (TALL-masks); lambda from {0.2, ..., 0.6}.
    """

    name: ClassVar[str] = "tall-masks"

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> theta_0 + tau_MTL (...)."""
        thresholds = self._thresholds(parameter, statistics)
        return merge_elementwise(parameter, lambda vectors, _: self._multi_task(vectors, thresholds))

    def merge_for_tasks(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> every task's own (T, ...)."""
        thresholds = self._thresholds(parameter, statistics)

        def updates(vectors: list[Tensor], _: slice) -> list[Tensor]:
            merged = self._multi_task(vectors, thresholds)
            return [merged * mask for mask in self._masks(vectors, merged, parameter)]

        return merge_elementwise_for_tasks(parameter, updates)


@dataclass(frozen=True)
class Consensus(_Localising):
    """Consensus merging: theta_0 + scale * (m * tau_MTL), m = 1 where the TALL-masks of at least k tasks are.

    Entries that serve no task ("catastrophic") or a single one ("selfish") are left out; one encoder serves all tasks.
    The masks are those of `TallMasks`, whose options it has.

    k: how many tasks must select an entry; 1 leaves out catastrophic ones only. scale: of what is left.

    Raises:
        SimoError: an option out of range or, when the experts are seen, a k above their number.

    Source: Wang et al., arXiv 2405.07813 (consensus merging).
    """

    name: ClassVar[str] = "consensus"
    k: int = 2
    scale: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", finite(self.name, "scale", self.scale))
        object.__setattr__(self, "k", whole(self.name, "k", self.k, least=1))

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        if self.k > parameter.count:
            raise SimoError(
                f"the k of {self.name} is {self.k}, but there are {parameter.count} experts, so nothing would be kept; "
                "lower k"
            )
        thresholds = self._thresholds(parameter, statistics)

        def update(vectors: list[Tensor], _: slice) -> Tensor:
            merged = self._multi_task(vectors, thresholds)
            votes = torch.zeros_like(merged)
            for mask in self._masks(vectors, merged, parameter):
                votes.add_(mask)
            return merged.mul_(votes >= self.k).mul_(self.scale)

        return merge_elementwise(parameter, update)
