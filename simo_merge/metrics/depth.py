"""Errors of depth maps, pooled over all valid pixels of a split."""

from __future__ import annotations

import torch
from torch import Tensor

from simo_merge.metrics.base import Metric, check_batch, valid_values

_DELTA_1 = 1.25


class DepthMetric(Metric):
    """Absolute, relative and squared error of depth, and the share of pixels within a factor of 1.25.

    abs = Σ|p − g|/N, rel = Σ(|p − g|/g)/N, rmse = √(Σ(p − g)²/N), delta1 = #{max(p/g, g/p) < 1.25}/N.

    "abs" and "rmse" are in the unit of the depth; "rel" and "delta1" are fractions. A valid pixel may have
    g = 0 (a disparity of zero): it counts in abs and rmse; rel and delta1 are means over pixels with g > 0.

    Args:
        name: The task's name, for error messages.
    """

    def __init__(self, *, name: str = "depth") -> None:
        super().__init__(name)
        for key in ("abs", "rel", "square"):
            self.sums[key] = torch.zeros((), dtype=torch.float64)
        for key in ("positive", "delta1"):
            self.sums[key] = torch.zeros((), dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch: prediction and target (B, 1, H, W), mask bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit each other, or the prediction is not finite at a valid pixel.
        """
        check_batch(self.name, prediction, target, mask, channels=1)
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

    def compute(self) -> dict[str, float]:
        """Returns "abs", "rel", "rmse" and "delta1"; NaN when no pixel was valid."""
        pixels, positive = self.sums["pixels"].double(), self.sums["positive"].double()  # 0/0 = NaN
        return {
            "abs": float(self.sums["abs"] / pixels),
            "rel": float(self.sums["rel"] / positive),
            "rmse": float((self.sums["square"] / pixels).sqrt()),
            "delta1": float(self.sums["delta1"] / positive),
        }
