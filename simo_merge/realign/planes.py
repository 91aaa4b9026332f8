"""Feature distributions in a plane: the expert's tokens, the merged ones and the aligned ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.models import Aligner
from simo_merge.realign.channels import channel_means
from simo_merge.realign.features import Features, check_same_images


@dataclass(frozen=True)
class FeaturePlane:
    """The same patches at one tap, seen along the two directions in which the expert's features vary most.

    expert, merged, aligned: (n, 2), in units of the expert's deviation along the first direction; aligned is None
    without an aligner. explained: share of the expert's variance along either direction.
    """

    block: int
    expert: Tensor
    merged: Tensor
    aligned: Tensor | None
    explained: tuple[float, float]


def feature_planes(
    merged: Features, expert: Features, blocks: tuple[int, ...], aligner: Aligner | None = None, tokens: int = 400
) -> list[FeaturePlane]:
    """A plane for every tap: principal directions of the expert's patches, onto which all three are projected.

        p(z) = V' (z - mean y) / s,   V the two leading eigenvectors of the covariance of y, s = sqrt(lambda_1)

    The directions are fitted to all patches; `tokens` of them, evenly spread over the images, are returned, the same
    ones of each distribution. Each direction points to where its largest component is positive, so that two pictures
    of the same features are alike.

    Raises:
        SimoError: no image, or features of other images.

    Source: the pictures of arXiv 2402.02705, which are by t-SNE; a linear map keeps proportions and does
    not depend on a seed.
    """
    check_same_images(merged, expert)
    images, places = _spread(expert.patches[0].shape[0], expert.patches[0].shape[1], tokens)
    chosen = torch.unique(images)
    corrected = None if aligner is None else merged.subset(chosen).aligned(aligner)[0]
    rows = torch.searchsorted(chosen, images)
    found = []
    for tap, block in enumerate(blocks):
        y = expert.patches[tap]
        mean, directions, values, total = _principal(y)
        unit = values[0].clamp_min(1e-24).sqrt()

        def seen(tokens: Tensor, mean: Tensor = mean, directions: Tensor = directions, unit: Tensor = unit) -> Tensor:
            return (((tokens.double() - mean) @ directions) / unit).float()

        shares = (values / total.clamp_min(1e-24)).tolist()
        found.append(
            FeaturePlane(
                block=block,
                expert=seen(y[images, places]),
                merged=seen(merged.patches[tap][images, places]),
                aligned=None if corrected is None else seen(corrected[tap][rows, places]),
                explained=(shares[0], shares[1]),
            )
        )
    return found


def _principal(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (C,), two leading directions (C, 2), the variances along them (2,), and the whole variance, in float64."""
    mean = channel_means(y)
    covariance = y.new_zeros(y.shape[2], y.shape[2], dtype=torch.float64)
    for image in y:  # one at a time: in float64 all together would take twice what the features take
        apart = image.double() - mean
        covariance += apart.T @ apart
    covariance /= y.shape[0] * y.shape[1]
    values, vectors = torch.linalg.eigh(covariance)
    if len(values) == 1:  # a single channel has no second direction
        values, vectors = torch.cat([values.new_zeros(1), values]), torch.cat([vectors * 0, vectors], dim=1)
    values, directions = values[-2:].flip(0).clamp_min(0), vectors[:, -2:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return mean, directions * torch.where(largest < 0, -1.0, 1.0), values, covariance.diagonal().sum()


def _spread(images: int, patches: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Image and place of evenly spread patches, at most `tokens` of them."""
    total = images * patches
    index = torch.linspace(0, total - 1, min(tokens, total), dtype=torch.float64).round().long()
    return index // patches, index % patches
