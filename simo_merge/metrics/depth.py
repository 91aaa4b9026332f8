"""Errors of depth and disparity maps, pooled over all valid pixels of a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.metrics.base import Metric, check_batch, chosen_scores, counted, valid_values

_DELTA_1 = 1.25
_SMALLEST = 1e-9


class DepthMetric(Metric):
    """Absolute, relative and squared error of depth, and the share of pixels within a factor of 1.25.

    abs = Σ|p − g|/N, rel = Σ(|p − g|/g)/N, rmse = √(Σ(p − g)²/N), delta1 = #{max(p/g, g/p) < 1.25}/N, and on
    request log_rmse = √(Σ(ln g − ln max(p, 1e-9))²/N).

    "abs" and "rmse" are in the unit of the depth; the others have none. A valid pixel may have g = 0 (a
    disparity of zero): it counts in abs and rmse; the others are means over pixels with g > 0.

    Args:
        scores: Which of them `compute` returns, in this order.
        zero_sums: Whether a valid label of 0 counts at all; see `base.counted`.
        name: The task's name, for error messages.

    Raises:
        SimoError: When a score is none of the five.
    """

    def __init__(
        self,
        scores: Sequence[str] = ("abs", "rel", "rmse", "delta1"),
        *,
        zero_sums: bool = True,
        name: str = "depth",
    ) -> None:
        self.scores = chosen_scores(name, scores, ("abs", "rel", "rmse", "delta1", "log_rmse"))
        self.zero_sums = zero_sums
        super().__init__(name, self.scores, zero_sums)
        for key in ("abs", "rel", "square", "log_square"):
            self.sums[key] = torch.zeros((), dtype=torch.float64)
        for key in ("positive", "delta1"):
            self.sums[key] = torch.zeros((), dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch: prediction and target (B, 1, H, W), mask bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit each other, or the prediction is not finite at a valid pixel.
        """
        check_batch(self.name, prediction, target, mask, channels=1)
        mask = counted(target, mask, self.zero_sums)
        p, g = valid_values(self.name, prediction, target, mask)  # (N, 1)
        error = (p - g).abs()
        positive = g > 0
        # Products, not quotients: where p or g is zero or below, one of the two fails without a division.
        within = (p < _DELTA_1 * g) & (g < _DELTA_1 * p)
        self._add(
            abs=error.sum(),
            rel=(error[positive] / g[positive]).sum(),
            square=error.square().sum(),
            positive=positive.sum(),
            delta1=within.sum(),
            pixels=mask.sum(),
        )
        if "log_rmse" in self.scores:
            logs = g[positive].log() - p[positive].clamp(min=_SMALLEST).log()
            self._add(log_square=logs.square().sum())

    def compute(self) -> dict[str, float]:
        """Returns the chosen scores; NaN when no pixel was valid."""
        pixels, positive = self.sums["pixels"].double(), self.sums["positive"].double()  # 0/0 = NaN
        scores = {
            "abs": self.sums["abs"] / pixels,
            "rel": self.sums["rel"] / positive,
            "rmse": (self.sums["square"] / pixels).sqrt(),
            "delta1": self.sums["delta1"] / positive,
            "log_rmse": (self.sums["log_square"] / positive).sqrt(),
        }
        return {score: float(scores[score]) for score in self.scores}
