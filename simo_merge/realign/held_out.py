"""What candidate aligners miss on images they were not fitted to, from moments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.realign.closed_form import error_scale, scale_of
from simo_merge.realign.moments import TapMoments


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of X'X scaled to a unit diagonal: one decomposition serves every ridge and task."""

    xx: Tensor
    scale_in: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, xx: Tensor) -> Spectrum:
        """The spectrum of a pooled X'X (D, D)."""
        scale_in = scale_of(xx)
        values, vectors = torch.linalg.eigh(xx / torch.outer(scale_in, scale_in))
        return cls(xx, scale_in, values.clamp_min(0), vectors)

    def turned(self, xx: Tensor) -> Tensor:
        """Another X'X in these units and along these eigenvectors."""
        return self.vectors.T @ (xx / torch.outer(self.scale_in, self.scale_in)) @ self.vectors


@dataclass(frozen=True)
class HeldOut:
    """A fold's X'X, as it is and along the eigenvectors of the rest: tasks and ridges share both."""

    xx: Tensor
    turned: Tensor


def path_errors(
    spectrum: Spectrum,
    held_out: HeldOut,
    train: TapMoments,
    test: TapMoments,
    task: str,
    scale_out: Tensor,
    ridges: Sequence[float],
) -> Tensor:
    """Squared error on held-out tokens of reduced-rank ridge regression, for each ridge and every rank from 0 to C.

    With V the eigenvectors that `reduced_rank_ridge` keeps, B the ridge solution, p_i = B v_i and d = y - x, all
    scaled,

        error(r) = sum of squares of d - 2 sum_{i<=r} p_i' X'D v_i + sum_{i<=r} p_i' X'X p_i,

    because the v_i are orthonormal; within each group of tokens, plus what the means of the groups differ by from
    those of the training images, which the offsets carry. Rank 0 is the offsets alone.

    Returns:
        (ridges, C + 1), in units of scale_out, weighted as `TapMoments.weights`.
    """
    own, units = train.own(task), torch.outer(spectrum.scale_in, scale_out)
    target = spectrum.vectors.T @ ((train.pooled_xy(task) - spectrum.xx[:, own]) / units)  # (D, C)
    xy = test.pooled_xy(task)
    change = spectrum.vectors.T @ ((xy - held_out.xx[:, own]) / units)  # (D, C), X'D of the fold
    squares = test.pooled_yy(task) - 2 * xy[own].diagonal() + held_out.xx[own, own].diagonal()
    masses, along, apart = _between(spectrum, train, test, task, scale_out)
    start = (squares / scale_out.square()).sum() + (masses[:, None] * apart.square()).sum()
    errors = []
    for ridge in ridges:
        solution = target / (spectrum.values + ridge)[:, None]  # (D, C)
        fitted = solution.T @ target
        _, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
        leading = vectors.flip(1)  # (C, C), the first direction first
        maps = solution @ leading  # (D, C), p_i
        shift = along @ maps  # (G, C), what p_i says of each group's mean
        gain = (maps * (change @ leading)).sum(0) + (masses[:, None] * shift * (apart @ leading)).sum(0)
        cost = (maps * (held_out.turned @ maps)).sum(0) + (masses[:, None] * shift.square()).sum(0)
        errors.append(torch.cat([start[None], start + (cost - 2 * gain).cumsum(0)]))
    return torch.stack(errors)


def _between(
    spectrum: Spectrum, train: TapMoments, test: TapMoments, task: str, scale_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each group its mass (G,), and how far its held-out means of x (G, D) and d (G, C) are from the others'."""
    own = train.own(task)
    along, apart = [], []
    for ours, theirs in zip(test.groups, train.groups, strict=True):
        x = ours.mean_x() - theirs.mean_x()
        along.append((x / spectrum.scale_in) @ spectrum.vectors)
        apart.append((ours.mean_y(task) - theirs.mean_y(task) - x[own]) / scale_out)
    masses = [w * group.count for w, group in zip(test.weights, test.groups, strict=True)]
    return scale_out.new_tensor(masses), torch.stack(along), torch.stack(apart)


def diagonal_error(
    test: TapMoments, task: str, scales: Sequence[Tensor], offsets: Sequence[Tensor], scale_out: Tensor
) -> float:
    """Squared error on held-out tokens of scale * x + offset; for each group of tokens a scale and an offset, (C,)."""
    own, total = test.own(task), 0.0
    for weight, group, scale, offset in zip(test.weights, test.groups, scales, offsets, strict=True):
        x, y = group.deviation_x()[own], group.deviation_y(task)
        common = group.block(own, slice(None)).scatter_xy(task).diagonal() / group.count
        apart = group.mean_y(task) - scale * group.mean_x()[own] - offset
        squares = y.square() - 2 * scale * common + (scale * x).square() + apart.square()
        total += weight * group.count * float((squares / scale_out.square()).sum())
    return total


def total_error(moments: TapMoments, task: str, scale_out: Tensor) -> float:
    """Squared deviations of the expert's features from their means, in the same units: what is to be explained."""
    return float((moments.pooled_yy(task) / scale_out.square()).sum())


def output_scale(moments: TapMoments, task: str) -> Tensor:
    """How large an error in each channel is taken to be, (C,): `error_scale` of the patches."""
    return error_scale(moments.patches.deviation_y(task))
