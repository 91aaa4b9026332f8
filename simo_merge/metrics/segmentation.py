"""Mean intersection over union from one confusion matrix for the whole split."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.metrics.base import Metric, check_batch, check_finite

Absent = Literal["skip", "zero", "nan"]


class SegmentationMetric(Metric):
    """Mean IoU and pixel accuracy, as fractions from 0 to 1.

    With M the confusion matrix over all valid pixels of the split (rows: label, columns: prediction),
    IoU_c = M_cc / (Σ_j M_cj + Σ_i M_ic − M_cc), mIoU is the mean over classes, and pixel accuracy is
    Σ_c M_cc / Σ M. This is torchmetrics' `MulticlassJaccardIndex`, not its `MeanIoU` (a mean over images).

    Args:
        num_classes: K.
        absent: What a class without a label and without a prediction counts: "skip" leaves it out of the
            mean, "zero" counts 0, "nan" makes the mean NaN. Each is some protocol's way (`metrics.protocols`).
        name: The task's name, for error messages.

    Raises:
        SimoError: When K < 1 or `absent` is none of the three.
    """

    def __init__(self, num_classes: int, absent: Absent = "skip", *, name: str = "segmentation") -> None:
        super().__init__(name, absent)
        if num_classes < 1:
            raise SimoError(f"{name}: num_classes is {num_classes}, expected at least 1")
        if absent not in ("skip", "zero", "nan"):
            raise SimoError(f"{name}: absent is {absent!r}, expected one of skip, zero, nan")
        self.num_classes = num_classes
        self.absent = absent
        self.sums["confusion"] = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch: prediction (B, K, H, W) logits, target integer (B, H, W), mask bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit, logits are not finite, or a valid label is not in 0..K-1.
        """
        check_batch(self.name, prediction, target, mask, channels=self.num_classes, target_channels=False)
        # max, because argmax takes five times as long over a dimension that is not the last one; the largest
        # logit is NaN or infinite whenever the choice of a class is in doubt.
        largest, classes = prediction.detach().max(dim=1)  # (B, K, H, W) -> 2 x (B, H, W)
        check_finite(self.name, largest[mask])
        predicted, labels = classes[mask], target[mask]  # (N,)
        check_labels(self.name, labels, self.num_classes)
        cells = torch.bincount(labels.long() * self.num_classes + predicted, minlength=self.num_classes**2)
        self._add(confusion=cells.view(self.num_classes, self.num_classes), pixels=mask.sum())

    def per_class(self) -> Tensor:
        """IoU of each class, float64 (K,); NaN for a class that was neither labelled nor predicted."""
        confusion = self.sums["confusion"].double()
        intersection = confusion.diagonal()
        return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)  # 0/0 = NaN

    def compute(self) -> dict[str, float]:
        """Returns "miou" and "pixel_accuracy"; NaN when no pixel was valid."""
        if self.valid_pixels == 0:
            return {"miou": float("nan"), "pixel_accuracy": float("nan")}
        iou = self.per_class()
        if self.absent == "skip":
            iou = iou[~iou.isnan()]
        elif self.absent == "zero":
            iou = iou.nan_to_num(nan=0.0)
        confusion = self.sums["confusion"].double()
        return {"miou": float(iou.mean()), "pixel_accuracy": float(confusion.trace() / confusion.sum())}


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Refuses labels of valid pixels that are no class index.

    Raises:
        SimoError: When labels are not integers, or any is outside 0..num_classes-1.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise SimoError(f"{name}: target is {labels.dtype}, expected integers 0..{num_classes - 1}")
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise SimoError(
            f"{name}: valid labels run from {low} to {high}, expected 0..{num_classes - 1}; "
            "unset the mask where a pixel has no class"
        )
