"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.merging.elementwise.pieces import merge_elementwise
from simo_merge.merging.elementwise.trim import Trim, keep_from
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import finite, one_of
from simo_merge.merging.parameter import Parameter, Parameters


def elect(vectors: Sequence[Tensor], by: str) -> Tensor:
    """The elected sign of every entry, in {-1, 0, 1}: that of the larger total magnitude, or of the larger number.

    Where both sides weigh the same none is elected, 0.
    """
    votes = vectors[0].clone() if by == "mass" else torch.sign(vectors[0])
    for vector in vectors[1:]:
        votes.add_(vector if by == "mass" else torch.sign(vector))
    return votes.sign_()


def agreeing(vectors: Sequence[Tensor], signs: Tensor) -> list[Tensor]:
    """The magnitudes of the entries that have the elected sign, 0 elsewhere; they overwrite the vectors."""
    return [vector.mul_(signs).clamp_(min=0) for vector in vectors]


def disjoint(vectors: Sequence[Tensor], signs: Tensor, combine: str) -> Tensor:
    """Mean, sum or maximum of the entries that have the elected sign; the vectors are overwritten."""
    total, count = torch.zeros_like(signs), torch.zeros_like(signs)
    for magnitudes in agreeing(vectors, signs):
        if combine == "max":
            torch.maximum(total, magnitudes, out=total)
            continue
        total.add_(magnitudes)
        if combine == "mean":
            count.add_(magnitudes.sign_())
    if combine == "mean":
        total.div_(count.clamp_(min=1))
    return total.mul_(signs)


@dataclass(frozen=True)
class Ties(MergeMethod):
    """TIES-Merging: theta_0 + scale * tau_m, of task vectors whose small entries and lost votes are left out.

    1. trim: tau^_t keeps the share `density` of largest magnitudes of tau_t (`trim.Trim` states what k and equal
    magnitudes mean). 2. elect: gamma = sgn(sum_t tau^_t) ("mass"), or sgn(sum_t sgn(tau^_t)) ("count"). 3. merge: tau_m
    is the mean ("mean"), sum ("sum") or largest ("max") of the entries {tau^_t : sgn(tau^_t) = gamma, not 0}. Where the
    votes cancel exactly gamma is 0 and so is tau_m, as the formula has it; the published code then takes the sign that
    is the more frequent in the whole model.

    density: kept share, in (0, 1]. trim: "global", as in the paper, or "per_tensor". scale: lambda.

    Raises:
        SimoError: an option out of range.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1.
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    trim: str = "global"
    elect: str = "mass"
    combine: str = "mean"
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", self._trim.check(self.name))
        one_of(self.name, "elect", self.elect, ("mass", "count"))
        one_of(self.name, "combine", self.combine, ("mean", "sum", "max"))
        object.__setattr__(self, "scale", finite(self.name, "scale", self.scale))

    @property
    def _trim(self) -> Trim:
        return Trim(self.density, self.trim)

    @property
    def by_entry(self) -> bool:
        """With thresholds that are global."""
        return self._trim.by_entry

    def statistics(self, parameters: Parameters) -> Tensor | None:
        """The global thresholds (T,); nothing for those of one tensor."""
        return self._trim.statistics(parameters)

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        thresholds = self.thresholds(parameter, statistics)
        return merge_elementwise(parameter, lambda vectors, _: self.vector(vectors, thresholds).mul_(self.scale))

    def thresholds(self, parameter: Parameter, statistics: Any) -> list[float]:
        """From which magnitude each expert's entries of this parameter are kept."""
        return self._trim.thresholds(parameter, statistics)

    def vector(self, vectors: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
        """tau_m (n,) of task vectors (n,)."""
        trimmed = [keep_from(vector, threshold) for vector, threshold in zip(vectors, thresholds, strict=True)]
        return disjoint(trimmed, elect(trimmed, self.elect), self.combine)
