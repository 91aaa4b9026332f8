"""Where in the image the error of features sits."""

from __future__ import annotations

import torch
from torch import Tensor

from simo_merge.models import Aligner
from simo_merge.realign.channels import channel_deviations
from simo_merge.realign.features import Features, check_same_images

_CHUNK = 64  # images


def error_maps(merged: Features, expert: Features, aligner: Aligner | None = None) -> Tensor:
    """The squared error of every patch at every tap, in units of the expert's variance: (N, taps, h, w).

        e_i = |x_i - y_i|^2 / mean_j |y_j - mean y|^2

    Its mean over images and patches is 1 - explained variance of `tap_distances`: 0 is the expert's feature, 1 is no
    better than the expert's mean. float32.

    Raises:
        SimoError: no image, or features of other images.
    """
    check_same_images(merged, expert)
    spread = [float(channel_deviations(y).square().sum()) for y in expert.patches]
    found = []
    for start in range(0, len(expert), _CHUNK):
        x, y = (features.subset(slice(start, start + _CHUNK)) for features in (merged, expert))
        aligned, _ = x.aligned(aligner)
        errors = [
            (a - b).double().square().sum(-1) / max(unit, 1e-12)  # (n, h*w)
            for a, b, unit in zip(aligned, y.patches, spread, strict=True)
        ]
        found.append(torch.stack(errors, dim=1).float())
    return torch.cat(found).reshape(len(expert), len(spread), *expert.grid)
