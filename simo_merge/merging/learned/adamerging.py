"""AdaMerging: a coefficient for every task, or for every task and layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.merging.elementwise.ties import elect
from simo_merge.merging.elementwise.trim import Trim, keep_from
from simo_merge.merging.learned.coefficients import GRANULARITIES
from simo_merge.merging.learned.fitting import LearnedCoefficients
from simo_merge.merging.options import one_of
from simo_merge.merging.parameter import Parameter, Parameters


@dataclass(frozen=True, kw_only=True)
class AdaMerging(LearnedCoefficients):
    """AdaMerging: theta_0^l + sum_t lambda_t^l tau_t^l, lambda learned.

    The paper minimises the entropy of predictions; dense tasks such as depth have none, so agreement with the experts
    stands in its place unless told otherwise. The paper takes 500 steps with lr 1e-3 and batches of 16 from 0.3; a
    dense ViT's step costs more, so here fewer steps at a higher rate are the default.

    granularity: "task" (one coefficient a task), "layer" (embeddings, each block, what follows) or "tensor" (every
        tensor by itself, which is what the published code calls layer-wise).
    clamp: use coefficients clamped to 0..1, as the published code does; the paper sets no bounds.
    density: AdaMerging++ with this share, 0.2 in the published code: tau_t is replaced by Phi(tau_t), trimmed as in
        TIES over all parameters and without the entries against the elected sign. None: the task vectors themselves.

    Raises:
        SimoError: as `LearnedCoefficients`, an unknown granularity, or a density outside (0, 1].

    Source: Yang et al., arXiv 2310.02575, sections 3.2 and 3.3.
    """

    name: ClassVar[str] = "adamerging"
    granularity: str = "layer"
    clamp: bool = False
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.name, "granularity", self.granularity, GRANULARITIES)
        if self._trim is not None:
            object.__setattr__(self, "density", self._trim.check(self.name))

    @property
    def _trim(self) -> Trim | None:
        return None if self.density is None else Trim(self.density, "global")

    @property
    def groups(self) -> str:
        """The granularity."""
        return self.granularity

    @property
    def clamped(self) -> bool:
        """Whether coefficients are used clamped to 0..1."""
        return self.clamp

    def thresholds(self, parameters: Parameters) -> Tensor | None:
        """The magnitude from which each expert's entries are kept, (T,)."""
        return None if self._trim is None else self._trim.statistics(parameters)

    def vectors(self, parameter: Parameter, thresholds: Tensor | None) -> Tensor:
        """tau_t, or Phi(tau_t): (T, ...)."""
        if self._trim is None:
            return parameter.vectors
        kept = self._trim.thresholds(parameter, thresholds)
        trimmed = [keep_from(vector, threshold) for vector, threshold in zip(parameter.vectors, kept, strict=True)]
        signs = elect(trimmed, "mass")
        return torch.stack([vector.masked_fill(vector * signs <= 0, 0) for vector in trimmed])
