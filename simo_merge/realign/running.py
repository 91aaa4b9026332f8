"""Moments that grow with the images: what a batch gives is added, and the batch is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import Encoder, Taps
from simo_merge.realign.folds import FoldedMoments
from simo_merge.realign.moments import Moments, TapMoments, add_up_moments, summing_device, tap_moments

Tokens = tuple[list[Tensor], list[Tensor]]
"""Patches (B, h*w, C) and prefix tokens (B, P, C), of every tap."""


@dataclass(frozen=True)
class MomentsWanted:
    """Which moments a method is fitted to, where it needs nothing else of the images.

    joint, folds: as in `folded_moments`. alone: those of each expert's patches as well, for their covariance.
    """

    joint: bool = False
    folds: int = 1
    alone: bool = False

    @property
    def precise(self) -> bool:
        """Whether products are of float64: they are where captured features are reduced so, too."""
        return not self.joint and self.folds == 1


class RunningMoments:
    """The moments of all images so far.

    Args:
        wanted: which.
        widths: channels of each tap.
        folds: how many there are; fewer than wanted where there are fewer images.
        precise: see `Moments.of`.
    """

    def __init__(self, wanted: MomentsWanted, widths: tuple[int, ...], folds: int = 1, precise: bool = True) -> None:
        self.wanted, self.widths, self.precise = wanted, widths, precise
        self.alone: dict[tuple[str, int], Moments] = {}
        self._folds: list[list[TapMoments]] = [[] for _ in range(folds)]

    def add(self, merged: Tokens, experts: Mapping[str, Tokens], fold: int = 0) -> None:
        """Take up some images of one fold."""
        x, z = self._read(merged)
        theirs = {task: self._read(tokens) for task, tokens in experts.items()}
        new = [
            tap_moments(
                x[tap],
                z[tap],
                {task: y[tap] for task, (y, _) in theirs.items()},
                {task: w[tap] for task, (_, w) in theirs.items()},
                self.precise,
            )
            for tap in range(len(x))
        ]
        old = self._folds[fold]
        self._folds[fold] = [a + b for a, b in zip(old, new, strict=True)] if old else new
        if not self.wanted.alone:
            return
        for task, (patches, _) in experts.items():
            for tap, tokens in enumerate(patches):
                more = Moments.of(tokens.flatten(0, 1).to(new[0].patches.xx.device), {}, precise=False)
                self.alone[task, tap] = self.alone[task, tap] + more if (task, tap) in self.alone else more

    def add_up(self, tasks: list[str], prefix: int) -> None:
        """Make them those of all processes' images; a process that had none of a fold counts for nothing."""
        none: Tokens = ([torch.zeros(0, 1, c) for c in self.widths], [torch.zeros(0, prefix, c) for c in self.widths])
        self.to(torch.device("cpu"))
        for fold, found in enumerate(self._folds):
            if not found:
                self.add(none, dict.fromkeys(tasks, none), fold)
        add_up_moments([moments for found in self._folds for moments in found])
        add_up_moments([TapMoments(self.alone[cell], []) for cell in sorted(self.alone)])

    def to(self, device: torch.device) -> None:
        """Move them."""
        self._folds = [[moments.to(device) for moments in found] for found in self._folds]
        self.alone = {cell: moments.to(device) for cell, moments in self.alone.items()}

    def folded(self) -> FoldedMoments:
        """Those of every tap, in folds."""
        return FoldedMoments(self._folds, self.widths, self.wanted.joint)

    def _read(self, tokens: Tokens) -> Tokens:
        """The tokens of each tap, or those of all taps concatenated, as a single entry; where float64 is computed."""
        patches, prefix = ([torch.cat(p, dim=-1)] if self.wanted.joint else list(p) for p in tokens)
        where = summing_device(patches[0].device)
        return [p.to(where) for p in patches], [p.to(where) for p in prefix]


def encode(encoder: Encoder, images: Tensor, device: torch.device, precision: str, whose: str) -> Tokens:
    """What an encoder on a device gives for a batch (B, 3, H, W), in float32 and left there.

    Raises:
        SimoError: images that the encoder cannot take, or NaN in the features (the tap is named).
    """
    with torch.inference_mode(), autocast(device, precision):
        taps = encoder(images.to(device))
    patches, prefix = tokens_of(taps)
    for block, *parts in zip(encoder.taps, patches, prefix, strict=True):
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise SimoError(f"what {whose} gives at block {block} for these images holds NaN or infinity")
    return patches, prefix


def tokens_of(taps: Taps) -> Tokens:
    """The tokens of an encoder's taps, in float32."""
    patches = [m.float().flatten(2).transpose(1, 2) for m in taps.maps]  # (B, C, h, w) -> (B, h*w, C)
    return patches, [p.float() for p in taps.prefix]
