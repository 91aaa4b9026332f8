"""How far merged or aligned features are from an expert's, tap by tap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from simo_merge.models import Aligner
from simo_merge.realign.features import Features


@dataclass(frozen=True)
class TapDistance:
    """Distance of patch features to the expert's at one tap.

    l1: mean absolute difference. cosine: mean of 1 - cosine similarity over tokens. explained_variance:
    1 - sum of squared errors / sum of squared deviations of the expert from its channel means; 1 is perfect,
    below 0 is worse than the mean.
    """

    block: int
    l1: float
    cosine: float
    explained_variance: float


def tap_distances(
    merged: Features, expert: Features, blocks: tuple[int, ...], aligner: Aligner | None = None
) -> list[TapDistance]:
    """The distances at every tap; blocks are the encoder's tap indices."""
    found = []
    for tap, block in enumerate(blocks):
        x, y = merged.patches[tap], expert.patches[tap]
        if aligner is not None:
            with torch.inference_mode():
                x, _ = aligner.taps[tap](x, merged.prefix[tap])
        error = (x - y).double()
        spread = (y - y.mean(dim=(0, 1))).double().square().sum().clamp_min(1e-12)
        found.append(
            TapDistance(
                block=block,
                l1=float(error.abs().mean()),
                cosine=float((1 - F.cosine_similarity(x, y, dim=-1)).mean()),
                explained_variance=float(1 - error.square().sum() / spread),
            )
        )
    return found
