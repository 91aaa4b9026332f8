"""Moments of all calibration images in one pass, kept apart for folds of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.realign.features import CalibrationFeatures, Features, refuse_share
from simo_merge.realign.moments import TapMoments, summing_device, tap_moments

Reads = Literal["own", "all"]
FOLDS = 5


@dataclass
class FoldedMoments:
    """Moments of every tap, for all tasks at once, in folds of images.

    folds: for each fold, the moments of every tap; or of all taps' channels concatenated, a single entry, where a
    tap is to be predicted from all (`joint`). widths: channels of each tap. They add up over workers, fold by fold.

    With D = sum of tap channels, P prefix tokens, K folds and T tasks they take 8 K (1 + P) (1 + T) D^2 bytes jointly
    (0.75 GB for ViT-S/14 with four taps, three tasks and five folds), without `joint` a part in len(widths) of that.
    """

    folds: list[list[TapMoments]]
    widths: tuple[int, ...]
    joint: bool

    def __add__(self, other: FoldedMoments) -> FoldedMoments:
        pairs = zip(self.folds, other.folds, strict=True)
        return FoldedMoments(
            [[a + b for a, b in zip(one, two, strict=True)] for one, two in pairs], self.widths, self.joint
        )

    def to(self, device: torch.device) -> FoldedMoments:
        """The same moments on a device; on a kind of device that may lack float64 they are not moved."""
        device = summing_device(device)
        return FoldedMoments([[m.to(device) for m in fold] for fold in self.folds], self.widths, self.joint)

    def total(self) -> list[TapMoments]:
        """All folds added."""
        return [reduce(add, parts) for parts in zip(*self.folds, strict=True)]

    def of_taps(self) -> list[TapMoments]:
        """All folds added, the moments of each tap alone."""
        total = self.total()
        return [self.tap(total, index) for index in range(len(self.widths))]

    def tap(self, found: Sequence[TapMoments], index: int, reads: Reads = "own") -> TapMoments:
        """The moments of one tap out of those of a fold, of `total`, or of their difference.

        Raises:
            SimoError: a tap is to be predicted from all, but the moments were summed for each tap alone.
        """
        start = sum(self.widths[:index])
        own = slice(start, start + self.widths[index])
        if self.joint:
            return found[0].block(slice(0, sum(self.widths)) if reads == "all" else own, own)
        if reads == "all":
            raise SimoError("these moments are of each tap alone; sum them with joint=True to predict from all taps")
        return found[index]


def fold_bounds(count: int, folds: int = FOLDS) -> list[tuple[int, int]]:
    """First and last (exclusive) image of each fold: K runs of neighbours, fewer where there are fewer images.

    Images that lie side by side in a folder are often of one scene; in one fold they cannot vouch for each other.
    """
    folds = min(folds, count)
    return [(count * k // folds, count * (k + 1) // folds) for k in range(folds)]


def folded_moments(
    features: CalibrationFeatures,
    joint: bool,
    folds: int = FOLDS,
    precise: bool = False,
    chunk: int = 64,
    device: torch.device | str = "cpu",
) -> FoldedMoments:
    """One pass over captured features.

    Args:
        features: of the merged encoder and of the experts.
        joint: moments of all taps' channels together, so that each tap can be predicted from all.
        folds: K.
        precise: products in float64 instead of float32 (see `Moments.of`); sums are float64 always.
        chunk: images at a time.
        device: where products are summed, if it computes float64; the moments lie on the CPU.
    """
    refuse_share(features)
    where = summing_device(device)
    found = [
        _sum(features.subset(slice(start, end)), joint, precise, chunk, where)
        for start, end in fold_bounds(len(features.merged), folds)
    ]
    return FoldedMoments(found, tuple(p.shape[-1] for p in features.merged.patches), joint)


def _sum(
    features: CalibrationFeatures, joint: bool, precise: bool, chunk: int, device: torch.device
) -> list[TapMoments]:
    total: list[TapMoments] = []
    for start in range(0, len(features.merged), chunk):
        part = features.subset(slice(start, start + chunk))
        patches, prefix = _parts(part.merged, joint, device)
        experts = {task: _parts(f, joint, device) for task, f in part.experts.items()}
        new = [
            tap_moments(
                patches[tap],
                prefix[tap],
                {task: y[tap] for task, (y, _) in experts.items()},
                {task: z[tap] for task, (_, z) in experts.items()},
                precise,
            )
            for tap in range(len(patches))
        ]
        total = new if not total else [a + b for a, b in zip(total, new, strict=True)]
    return [moments.to(torch.device("cpu")) for moments in total]


def _parts(features: Features, joint: bool, device: torch.device) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    patches, prefix = ([tensor.to(device) for tensor in part] for part in (features.patches, features.prefix))
    return ([torch.cat(patches, dim=-1)], [torch.cat(prefix, dim=-1)]) if joint else (patches, prefix)
