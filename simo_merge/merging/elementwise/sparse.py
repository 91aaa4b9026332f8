"""Task arithmetic on task vectors of which only a part is kept: by magnitude, or without what is extreme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.linear import weighted_sum
from simo_merge.merging.elementwise.pieces import merge_elementwise
from simo_merge.merging.elementwise.quantiles import kth_largest_of
from simo_merge.merging.elementwise.trim import Trim, keep_from
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import Scale, coefficients, scale_of, share
from simo_merge.merging.parameter import Parameter, Parameters


@dataclass(frozen=True)
class MagnitudeMask(MergeMethod):
    """Magnitude pruning: theta_0 + sum_t s_t (m_t * tau_t), m_t = 1 at the largest magnitudes of tau_t.

    density: kept share, in (0, 1] (`trim.Trim` states what k and equal magnitudes mean). trim: "global", one threshold
    for all parameters of an expert, or "per_tensor". scale: as in `TaskArithmetic`.

    Raises:
        SimoError: an option out of range.

    Source: the trimming of TIES alone (arXiv 2306.01708); the baseline that DARE is compared with (arXiv 2311.03099).
    """

    name: ClassVar[str] = "magnitude-mask"
    density: float = 0.2
    trim: str = "global"
    scale: Scale = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", Trim(self.density, self.trim).check(self.name))
        object.__setattr__(self, "scale", scale_of(self.name, self.scale))

    @property
    def by_entry(self) -> bool:
        """With thresholds that are global."""
        return Trim(self.density, self.trim).by_entry

    def statistics(self, parameters: Parameters) -> Tensor | None:
        """The global thresholds (T,); nothing for those of one tensor."""
        return Trim(self.density, self.trim).statistics(parameters)

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        weights = coefficients(self.name, self.scale, parameter)
        thresholds = Trim(self.density, self.trim).thresholds(parameter, statistics)

        def update(vectors: list[Tensor], _: slice) -> Tensor:
            return weighted_sum(
                [keep_from(v, threshold) for v, threshold in zip(vectors, thresholds, strict=True)], weights
            )

        return merge_elementwise(parameter, update)


@dataclass(frozen=True)
class Breadcrumbs(MergeMethod):
    """Model Breadcrumbs: theta_0 + sum_t s_t (m_t * tau_t), without the largest and the smallest magnitudes.

    Each parameter has its own masks. Of its n entries the round(outliers * n) largest are dropped, they are taken for
    outliers, and the round(smallest * n) smallest, taken for noise; at least one entry is kept. Entries as large as
    the largest or the smallest that is kept are kept as well.

    outliers: in [0, 1), the paper's 1 - gamma. smallest: in [0, 1), the paper's beta. Together they must be below 1.
    scale: the paper's alpha, or as in `TaskArithmetic`.

    Raises:
        SimoError: an option out of range.

    Source: Davari and Belilovsky, arXiv 2312.06795.
    """

    name: ClassVar[str] = "breadcrumbs"
    outliers: float = 0.01
    smallest: float = 0.85
    scale: Scale = 0.3

    def __post_init__(self) -> None:
        outliers = share(self.name, "outliers", self.outliers, zero=True, one=False)
        smallest = share(self.name, "smallest", self.smallest, zero=True, one=False)
        if outliers + smallest >= 1:
            raise SimoError(
                f"{self.name} would drop everything: outliers {outliers} plus smallest {smallest} must be below 1"
            )
        object.__setattr__(self, "outliers", outliers)
        object.__setattr__(self, "smallest", smallest)
        object.__setattr__(self, "scale", scale_of(self.name, self.scale))

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        weights = coefficients(self.name, self.scale, parameter)
        size = parameter.base.numel()
        first = min(round(self.outliers * size) + 1, size)  # ranks, from the largest
        last = max(size - round(self.smallest * size), first)
        bounds = kth_largest_of(parameter, [first, last]).tolist()

        def update(vectors: list[Tensor], _: slice) -> Tensor:
            for vector, (largest, smallest) in zip(vectors, bounds, strict=True):
                magnitudes = vector.float().abs()
                vector.mul_((magnitudes <= largest) & (magnitudes >= smallest))
            return weighted_sum(vectors, weights)

        return merge_elementwise(parameter, update)
