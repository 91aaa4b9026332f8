"""Errors of any other continuous map: edges, keypoints, shading, reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.metrics.base import Metric, check_batch, chosen_scores, valid_values


class RegressionMetric(Metric):
    """abs = mean |p − g| and rmse = √(mean (p − g)²), over all valid pixels of a split and all channels.

    Args:
        scores: Which of the two `compute` returns, in this order.
        name: The task's name, for error messages.

    Raises:
        SimoError: When a score is none of the two.
    """

    def __init__(self, scores: Sequence[str] = ("abs", "rmse"), *, name: str = "regression") -> None:
        self.scores = chosen_scores(name, scores, ("abs", "rmse"))
        super().__init__(name, self.scores)
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
        """Returns the chosen scores; NaN when no pixel was valid."""
        values = self.sums["values"].double()  # 0/0 = NaN
        scores = {"abs": self.sums["abs"] / values, "rmse": (self.sums["square"] / values).sqrt()}
        return {score: float(scores[score]) for score in self.scores}
