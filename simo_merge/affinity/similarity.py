"""Affinity from unlabelled images: how alike two experts' features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.affinity.seen import Seen
from simo_merge.metrics.ranks import spearman
from simo_merge.realign.distances import linear_cka

_TOKENS = 512
"""Tokens whose distances are ranked: 130,816 pairs."""


def cka(seen: Mapping[str, Seen]) -> list[Tensor]:
    """Linear centred kernel alignment of patch tokens for each tap, (T, T) in [0, 1]: `realign.distances.linear_cka`.

    1 for features that are equal up to rotation and one scale. Source: Kornblith et al., arXiv 1905.00414.
    """
    return _each_tap([[p.flatten(0, 1) for p in one.features.patches] for one in seen.values()], linear_cka)


def rsa_images(seen: Mapping[str, Seen]) -> list[Tensor]:
    """Representational similarity of whole images for each tap, (T, T) in [-1, 1].

    Spearman's rho between two encoders' distances of all pairs of images, a distance being 1 - Pearson's correlation
    of their mean patches, each channel in units of its deviation (or else a few huge channels decide alone). Two images
    have one distance, which orders nothing: NaN.

    Source: Dwivedi and Roig, arXiv 1904.11740; channels scaled as in Dwivedi et al., arXiv 2008.02107.
    """
    return _rsa([list(one.means) for one in seen.values()])


def rsa_tokens(seen: Mapping[str, Seen], seed: int = 0) -> list[Tensor]:
    """The same of patch tokens: 512 drawn from all images, the same of every encoder."""
    patches = next(iter(seen.values())).features.patches[0]
    total = patches.shape[0] * patches.shape[1]
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:_TOKENS].sort().values
    return _rsa([[p.flatten(0, 1)[drawn] for p in one.features.patches] for one in seen.values()])


def _rsa(taps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    distances = [[_distances(tap) for tap in encoder] for encoder in taps]
    return _each_tap(distances, lambda a, b: spearman(a.numpy(), b.numpy()))


def _distances(points: Tensor) -> Tensor:
    """1 - Pearson's correlation of every two of n points (n, C), their channels standardised: (n (n - 1) / 2,)."""
    wide = points.double()
    centred = wide - wide.mean(0)
    deviation = centred.square().mean(0).sqrt()
    scaled = centred / torch.where(deviation > 0, deviation, 1.0)
    rows = scaled - scaled.mean(1, keepdim=True)
    unit = torch.nn.functional.normalize(rows, dim=1)
    first, second = torch.triu_indices(len(points), len(points), offset=1)
    return 1 - (unit @ unit.T)[first, second]


def _each_tap(encoders: Sequence[Sequence[Tensor]], measure: Callable[[Tensor, Tensor], float]) -> list[Tensor]:
    """A symmetric measure of every two encoders at each tap; what each has with itself is measured too."""
    found = []
    for tap in zip(*encoders, strict=True):
        values = torch.full((len(tap), len(tap)), torch.nan, dtype=torch.float64)
        for s, one in enumerate(tap):
            for t, other in enumerate(tap[s:], start=s):
                values[s, t] = values[t, s] = measure(one, other)
        found.append(values)
    return found
