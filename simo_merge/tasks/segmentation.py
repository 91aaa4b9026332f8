"""Semantic segmentation: one class for each pixel."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from simo_merge.colours import Picture, Rgb, distinct_colours
from simo_merge.errors import SimoError
from simo_merge.metrics.base import check_batch
from simo_merge.metrics.segmentation import check_labels
from simo_merge.tasks.base import Limits, Name, Task, grey_out, valid_plane

_IGNORED = -100


class Segmentation(Task):
    """One class for each pixel; the decoder puts out logits.

    Target: int64 (B, H, W), 0..K-1. Loss: cross-entropy. Primary metric: mean IoU, a fraction.

    Args:
        classes: Names of the K classes.
        palette: One RGB colour a class, 0..255; default: `distinct_colours`.

    Raises:
        SimoError: When a class name occurs twice, there is no class, or the palette does not fit the classes.
    """

    higher_is_better: ClassVar[bool] = True

    name: Name = "segmentation"
    kind: Literal["segmentation"] = "segmentation"
    unit: Literal[""] = ""
    classes: tuple[str, ...]
    palette: tuple[Rgb, ...] | None = None

    @model_validator(mode="after")
    def _check_classes(self) -> Segmentation:
        if not self.classes:
            raise SimoError(f"{self.name}: there are no classes, expected the name of at least one")
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise SimoError(f"{self.name}: class names {twice} occur more than once; name each class differently")
        palette = self.palette or ()
        if self.palette is not None and len(palette) != len(self.classes):
            raise SimoError(
                f"{self.name}: the palette has {len(palette)} colours, expected {len(self.classes)}, one for each class"
            )
        wrong = [colour for colour in palette if not all(0 <= value <= 255 for value in colour)]
        if wrong:
            raise SimoError(f"{self.name}: the palette has colour {wrong[0]}, expected values 0..255")
        return self

    @property
    def out_channels(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def colours(self) -> tuple[Rgb, ...]:
        """One RGB colour a class: the palette, or the default colours."""
        return distinct_colours(len(self.classes)) if self.palette is None else self.palette

    def activate(self, raw: Tensor) -> Tensor:
        """Logits as they are, in float32."""
        return raw.float()

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy −log softmax(prediction)[target], mean over the valid pixels of the batch."""
        check_batch(self.name, prediction, target, mask, channels=self.out_channels, target_channels=False)
        labels = torch.where(mask, target.long(), _IGNORED)
        # The mean that cross_entropy offers is 0/0 when no pixel is valid.
        total = F.cross_entropy(prediction.float(), labels, ignore_index=_IGNORED, reduction="sum")
        return total / mask.sum().clamp(min=1)

    def draw(self, values: Tensor, mask: Tensor | None = None, limits: Limits | None = None) -> Picture:
        """Class colours of class indices (H, W), or of the largest logits (K, H, W); `limits` has no use."""
        if values.ndim == 3 and values.shape[0] == self.out_channels:
            values = values.detach().argmax(dim=0)
        if values.ndim != 2:
            raise SimoError(
                f"{self.name}: cannot draw shape {tuple(values.shape)}, expected "
                f"logits ({self.out_channels}, H, W) or class indices (H, W) of one image"
            )
        labels = values.detach().cpu()
        valid = valid_plane(self.name, labels.numpy()[None], mask)
        check_labels(self.name, labels[torch.from_numpy(valid)], self.out_channels)
        colours = np.array(self.colours, dtype=np.uint8)
        return grey_out(colours[np.where(valid, labels.numpy(), 0)], valid)
