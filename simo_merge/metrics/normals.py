"""Angles between predicted and true surface normals, pooled over all valid pixels of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from simo_merge.metrics.base import Metric, check_batch, chosen_scores, counted, valid_values

_THRESHOLDS = (11.25, 22.5, 30.0)
_WITHIN = tuple(f"within_{threshold:g}" for threshold in _THRESHOLDS)


def angles_between(prediction: Tensor, target: Tensor) -> Tensor:
    """Angle in degrees between vectors: 2 x (N, 3) -> (N,) float64, by atan2(|p x g|, p·g).

    This form is accurate everywhere, while acos(p·g) loses half of the digits near 0 and 180 degrees. Lengths
    do not matter. A vector of length 0 has no direction and counts as 90 degrees; atan2(0, 0) = 0 would count
    it as perfect.
    """
    # Whole columns, because torch.linalg.cross over rows of three takes three times as long.
    px, py, pz = prediction.double().T.contiguous()  # (N, 3) -> 3 x (N,)
    gx, gy, gz = target.double().T.contiguous()
    x, y, z = py * gz - pz * gy, pz * gx - px * gz, px * gy - py * gx
    sine = (x * x + y * y + z * z).sqrt()
    cosine = px * gx + py * gy + pz * gz
    angle = torch.rad2deg(torch.atan2(sine, cosine))
    return torch.where((sine == 0) & (cosine == 0), 90.0, angle)


def angles_by_acos(prediction: Tensor, target: Tensor) -> Tensor:
    """Angle in degrees as published code takes it: acos(clamp(p·g, −1, 1)) in float32, with p of unit length.

    2 x (N, 3) -> (N,) float64. The target is taken to have unit length. Near 0 and 180 degrees the result is
    off by up to 0.04 degrees; `angles_between` is not.
    """
    unit = F.normalize(prediction.float(), dim=1)
    cosine = (unit * target.float()).sum(dim=1).clamp(-1.0, 1.0)
    return torch.rad2deg(torch.acos(cosine)).double()


class NormalsMetric(Metric):
    """Mean and exact median angle in degrees, and the shares of pixels below 11.25, 22.5 and 30 degrees.

    On request also rmse = √(mean angle²). The exact median needs every angle: 4 bytes a valid pixel are kept
    (289 MB for the 654 test images of NYUv2 at 288 x 384) and `compute` takes as much again for a moment.

    Args:
        scores: Which of them `compute` returns, in this order; without "median" no angle is kept.
        angles: How an angle is computed: `angles_between` or `angles_by_acos`.
        zero_sums: Whether a valid normal whose components sum to 0 counts; see `base.counted`.
        name: The task's name, for error messages.

    Raises:
        SimoError: When a score is none of the six.
    """

    def __init__(
        self,
        scores: Sequence[str] = ("mean", "median", *_WITHIN),
        *,
        angles: Callable[[Tensor, Tensor], Tensor] = angles_between,
        zero_sums: bool = True,
        name: str = "normals",
    ) -> None:
        self.scores = chosen_scores(name, scores, ("mean", "median", *_WITHIN, "rmse"))
        self.angles = angles
        self.zero_sums = zero_sums
        super().__init__(name, self.scores, angles, zero_sums)
        for key in ("angle", "square"):
            self.sums[key] = torch.zeros((), dtype=torch.float64)
        self.sums["within"] = torch.zeros(len(_THRESHOLDS), dtype=torch.int64)
        self._angles: list[npt.NDArray[np.float32]] = []

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch: prediction and target (B, 3, H, W), mask bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit each other, or the prediction is not finite at a valid pixel.
        """
        check_batch(self.name, prediction, target, mask, channels=3)
        mask = counted(target, mask, self.zero_sums)
        angles = self.angles(*valid_values(self.name, prediction, target, mask))  # (N,)
        if "median" in self.scores:
            self._angles.append(angles.float().numpy())
        self._add(
            angle=angles.sum(),
            square=angles.square().sum(),
            within=torch.stack([(angles < threshold).sum() for threshold in _THRESHOLDS]),
            pixels=mask.sum(),
        )

    def merge(self, other: Metric) -> None:
        """Adds the state of another `NormalsMetric`, angles included.

        Raises:
            SimoError: When the other metric is of another kind.
        """
        super().merge(other)
        assert isinstance(other, NormalsMetric)  # Metric.merge refused everything else
        self._angles.extend(other._angles)

    def compute(self) -> dict[str, float]:
        """Returns the chosen scores; NaN when no pixel was valid."""
        pixels = self.sums["pixels"].double()  # 0/0 = NaN
        scores = {
            "mean": float(self.sums["angle"] / pixels),
            "rmse": float((self.sums["square"] / pixels).sqrt()),
            **{key: float(count / pixels) for key, count in zip(_WITHIN, self.sums["within"], strict=True)},
        }
        return {score: self._median() if score == "median" else scores[score] for score in self.scores}

    def _median(self) -> float:
        if self.valid_pixels == 0:
            return float("nan")
        together = np.concatenate(self._angles)
        self._angles = [together]  # lets the pieces go; their order means nothing, so it may change
        return float(np.median(together, overwrite_input=True))
