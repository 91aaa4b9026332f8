"""Magnitude alone: the merged features of a tap, longer or shorter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.models import MultiTaskModel
from simo_merge.models.aligners import MagnitudeTap
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.realignment import Calibration, TapwiseRealignment, fit_each_tap


def magnitudes(moments: TapMoments, task: str) -> list[Tensor]:
    """The scale s of each group of tokens for which ||s x|| is ||y|| over all of them, in the expert's units.

    s = sqrt(sum y^2 / sum x^2), every channel divided by the expert's deviation first, without which a few huge
    channels would decide; 1 where the merged features are 0.
    """
    units = error_scale(moments.patches.deviation_y(task)).square()
    own = moments.own(task)
    scales = []
    for group in moments.groups:
        x, y = (group.xx.diagonal()[own] / units).sum(), (group.yy[task] / units).sum()
        scales.append((y / x).sqrt() if x > 0 else torch.ones_like(y))
    return scales


@dataclass(frozen=True)
class Magnitude(TapwiseRealignment):
    """One scale for each tap and kind of token: merging shortens features, and this gives them their length back.

    Source: after MAGIC, arXiv 2512.19320, which scales what an encoder adds to the base's features.
    """

    name: ClassVar[str] = "magnitude"

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Match the magnitude of each tap and task."""
        return fit_each_tap(model, given, "magnitude", write_magnitudes)


def write_magnitudes(moments: TapMoments, task: str, tap: MagnitudeTap) -> None:
    """Set a tap's scales to `magnitudes`."""
    scales = magnitudes(moments, task)
    with torch.no_grad():
        tap.patch_scale.copy_(scales[0])
        for index, scale in enumerate(scales[1:]):
            tap.prefix_scale[index] = scale
