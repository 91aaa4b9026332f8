"""Trimming: the entries of a task vector that are small are set to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simo_merge.merging.elementwise.quantiles import kept, kth_largest, kth_largest_of
from simo_merge.merging.options import one_of, share
from simo_merge.merging.parameter import Parameter, Parameters


def keep_from(vector: Tensor, threshold: float) -> Tensor:
    """The entries of at least this magnitude, zero elsewhere."""
    if threshold <= 0:
        return vector
    if vector.dtype != torch.float32:  # thresholds are float32 magnitudes
        return vector.masked_fill(vector.float().abs() < threshold, 0)
    # hardshrink keeps what lies strictly above its bound: the largest float32 below the threshold
    return F.hardshrink(vector, float(np.nextafter(np.float32(threshold), np.float32(0))))


@dataclass(frozen=True)
class Trim:
    """Keep the share `density` of largest magnitudes of each task vector.

    "global" has one threshold for all parameters of an expert, "per_tensor" one for each parameter. k is
    density * n, rounded to the nearest and at least one. Entries as large as the k-th are all kept, so that neither the
    order of parameters nor that of entries matters.
    """

    density: float
    scope: str

    def check(self, method: str) -> float:
        """The density; one outside (0, 1] and an unknown scope are refused."""
        one_of(method, "trim", self.scope, ("global", "per_tensor"))
        return share(method, "density", self.density)

    @property
    def by_entry(self) -> bool:
        """Whether a parameter need not be seen whole to be trimmed."""
        return self.scope == "global" or self.density == 1

    def statistics(self, parameters: Parameters) -> Tensor | None:
        """The thresholds (T,) where they are global."""
        if self.scope == "per_tensor" or self.density == 1:
            return None
        return kth_largest(parameters, lambda size: [kept(self.density, size)])[:, 0]

    def thresholds(self, parameter: Parameter, statistics: Any) -> list[float]:
        """The magnitude from which each expert's entries of this parameter are kept."""
        if self.density == 1:
            return [0.0] * parameter.count
        if self.scope == "per_tensor":
            statistics = kth_largest_of(parameter, [kept(self.density, parameter.base.numel())])[:, 0]
        return [float(threshold) for threshold in statistics]
