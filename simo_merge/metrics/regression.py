"""Errors of any other continuous map: edges, keypoints, shading, reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from simo_merge.metrics.base import Metric, check_batch, valid_values


class RegressionMetric(Metric):
    """abs = mean |p − g| and rmse = √(mean (p − g)²), over all valid pixels of a split and all channels.

    Args:
        name: The task's name, for error messages.
    """

    def __init__(self, *, name: str = "regression") -> None:
        super().__init__(name)
        self.sums["abs"] = torch.zeros((), dtype=torch.float64)
        self.sums["square"] = torch.zeros((), dtype=torch.float64)
        self.sums["values"] = torch.zeros((), dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch: prediction and target (B, C, H, W), mask bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit each other, or the prediction is not finite at a valid pixel.
        """
        check_batch(self.name, prediction, target, mask, channels=None)
        p, g = valid_values(self.name, prediction, target, mask)  # (N, C)
        error = (p - g).abs()
        self._add(
            abs=error.sum(),
            square=error.square().sum(),
            values=torch.tensor(error.numel()),
            pixels=mask.sum(),
        )

    def compute(self) -> dict[str, float]:
        """Returns "abs" and "rmse"; NaN when no pixel was valid."""
        values = self.sums["values"].double()  # 0/0 = NaN
        return {
            "abs": float(self.sums["abs"] / values),
            "rmse": float((self.sums["square"] / values).sqrt()),
        }
