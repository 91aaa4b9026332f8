"""Full affine: linear surgery without a reduction of rank, held as one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simo_merge.models import MultiTaskModel
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.realignment import Calibration, TapwiseRealignment, check_rank


@dataclass(frozen=True)
class FullAffine(TapwiseRealignment):
    """Z + M Z + b with a full matrix for each task and tap, by ridge regression.

    ridge: relative to unit variance. C^2 numbers a tap: fewer than the factors of any rank above C / 2.
    """

    name: ClassVar[str] = "full-affine"
    ridge: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(1, self.ridge)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve each tap and task."""
        return LinearSurgery(rank=None, ridge=self.ridge, stretch="none").fit(model, given)
