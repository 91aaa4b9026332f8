"""Contrast: what least squares cannot predict it leaves out, and a decoder misses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models.aligners import CHANNELS, DIRECTIONS, StretchedTap, TapAligner
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.moments import Moments, TapMoments
from simo_merge.realign.realignment import Calibration

Stretch = Literal["none", "channels", "directions"]
Spreads = Mapping[tuple[str, int], Tensor]
"""The covariance (C, C) of the expert's patches, for each task and tap."""

LIMIT = 2.0
"""Nothing is stretched or shrunk by more: what is hardly predicted would be noise, made louder."""

_FLOOR = 1e-3
"""Added to both covariances, as a share of the mean variance: directions that neither knows stay as they are."""

_ROUNDING = 1e-6
"""The mean variance counts as at least this share of ours: beside it, rounding is small against the floor."""


class Stretches:
    """An option of a closed form: whether the contrast that its fit lacks is given back.

    The least-squares prediction of a channel of which a share R2 is explained deviates by sqrt(R2) of what the expert's
    does: aligned features are paler than those that the decoder was trained on. With `stretch="channels"` the aligned
    patches of every channel are stretched about their mean to the expert's deviation; with "directions" by the
    symmetric matrix that gives them the expert's covariance and changes them least. Neither stretches by more than
    `LIMIT`. Prefix tokens stay as they are.

    Source: among all estimates that have the right distribution, the optimal transport of the least-squares one is
    nearest to the truth: Freirich et al., arXiv 2107.02555. Channels, in merged networks: Jordan et al., 2211.08403.
    """

    stretch: Stretch

    def check_stretch(self) -> None:
        """Refuse an unknown one.

        Raises:
            SimoError: it is.
        """
        if self.stretch not in ("none", CHANNELS, DIRECTIONS):
            raise SimoError(f"stretch is 'none', {CHANNELS!r} or {DIRECTIONS!r}, got {self.stretch!r}")

    def stretched_by(self) -> dict[str, str]:
        """What to add to the options of an aligner."""
        return {} if self.stretch == "none" else {"stretched": self.stretch}

    def spreads(self, given: Calibration) -> Spreads:
        """The covariances that stretching along directions needs, of the experts' patches; else nothing."""
        if self.stretch != DIRECTIONS:
            return {}
        return {cell: covariance(moments) for cell, moments in given.alone().items()}


def stretch_size(stretch: Stretch, channels: int) -> int:
    """Numbers in the stretch of a tap."""
    return {"none": 0, CHANNELS: 2 * channels, DIRECTIONS: (channels + 1) * channels}[stretch]


def gets_stretch(kind: str, stretch: Stretch) -> bool:
    """Whether an aligner of this kind is followed by the stretch.

    The identity is no correction, and `affine` has given every channel the expert's deviation already.
    """
    return stretch != "none" and kind != "identity" and (kind, stretch) != ("affine", CHANNELS)


def covariance(moments: Moments) -> Tensor:
    """The covariance of x, (D, D)."""
    return moments.scatter_xx() / moments.count


def unstretched(tap: TapAligner) -> TapAligner:
    """The tap aligner to be fitted: what a `StretchedTap` holds, or the tap aligner itself."""
    return tap.inner if isinstance(tap, StretchedTap) else tap


def stretch_patches(tap: TapAligner, moments: TapMoments, task: str, spread: Tensor | None = None) -> None:
    """Set the stretch of a `StretchedTap` whose aligner within is fitted, and affine; others are left alone.

    Args:
        tap: the tap aligner.
        moments: of what it reads.
        task: whose expert.
        spread: the covariance of the expert's patches, for a stretch along directions.
    """
    if not isinstance(tap, StretchedTap):
        return
    maps = tap.inner.maps()
    assert maps is not None
    group = moments.patches
    matrix = maps.patch.to(group.xx)
    ours = matrix @ covariance(group) @ matrix.T
    theirs = group.deviation_y(task)
    scale = along_channels(ours, theirs) if spread is None else along_directions(ours, spread.to(ours), theirs)
    mean = matrix @ group.mean_x() + maps.patch_offset.to(matrix)
    with torch.no_grad():
        tap.patch_scale.copy_(scale)
        tap.patch_shift.copy_(mean - (scale * mean if scale.dim() == 1 else scale @ mean))


def along_channels(ours: Tensor, theirs: Tensor) -> Tensor:
    """What each channel is to be multiplied by (C,), from our covariance (C, C) and the expert's deviations (C,)."""
    deviation = ours.diagonal().clamp_min(0).sqrt()
    varies = (deviation > 1e-6 * theirs) & (theirs > 0)
    ratio = theirs / deviation.where(varies, torch.ones_like(deviation))
    return torch.where(varies, ratio.clamp(1 / LIMIT, LIMIT), torch.ones_like(ratio))


def along_directions(ours: Tensor, theirs: Tensor, deviations: Tensor) -> Tensor:
    """The optimal transport from one covariance (C, C) to another, (C, C), every channel in units of `error_scale`.

    With A = L L' and B the covariances in these units it is the symmetric, positive

        A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 = L'^-1 (L' B L)^1/2 L^-1,

    of which eigenvalues are kept within `LIMIT`.

    Source: Olkin and Pukelsheim, 1982.
    """
    units = error_scale(deviations)
    a, b = (c / torch.outer(units, units) for c in (ours, theirs))
    variance = b.diagonal().mean().maximum(_ROUNDING * a.diagonal().mean()).clamp_min(1e-12)
    least = _FLOOR * variance
    floor = least * torch.eye(len(a), dtype=a.dtype, device=a.device)
    lower, refused = torch.linalg.cholesky_ex(a + floor)
    if refused:  # what float32 products leave of an ill-conditioned map can be less than nothing
        found, axes = torch.linalg.eigh(a + floor)
        lower = torch.linalg.cholesky((axes * found.maximum(least)) @ axes.T)
    values, vectors = torch.linalg.eigh(lower.T @ (b + floor) @ lower)
    half = torch.linalg.solve_triangular(lower.T, vectors * values.clamp_min(0).pow(0.25), upper=True)
    transport = (half @ half.T).float()  # as aligners keep it, and twice as fast to decompose
    stretches, directions = torch.linalg.eigh(transport)
    kept: Tensor = ((directions * stretches.clamp(1 / LIMIT, LIMIT)) @ directions.T).to(a)
    return kept * torch.outer(units, 1 / units)
