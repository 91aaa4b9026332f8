"""What candidate aligners miss on images they were not fitted to, from moments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.realign.closed_form import error_scale, scale_of
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.output_metric import OutputMetric, cost_of, measured


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

    def turned(self, xx: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Another X'X in these units and along these eigenvectors, multiplied in this type."""
        vectors = self.vectors.to(dtype)
        return vectors.T @ (xx / torch.outer(self.scale_in, self.scale_in)).to(dtype) @ vectors


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
    metric: OutputMetric | None = None,
    fold: int = 0,
) -> Tensor:
    """Squared error on held-out tokens of reduced-rank ridge regression, for each ridge and every rank from 0 to C.

    With V the eigenvectors that `reduced_rank_ridge` keeps, B the ridge solution and d = y - x, all scaled,

        error(r) = sum of squares of d - 2 sum_{i<=r} v_i' B' X'D v_i + sum_{i<=r} v_i' B' X'X B v_i,

    because the v_i are orthonormal; within each group of tokens, plus what the means of the groups differ by from
    those of the training images, which the offsets carry. Rank 0 is the offsets alone. Products of matrices are made
    in the type of `held_out.turned`: in float32 the errors are right to about 1e-5 of the whole.

    Args:
        metric: the errors' metric, and with it the `fold` that the held-out images are, for `OutputMetric.spreads`.

    Returns:
        (ridges, C + 1), float64, in units of scale_out and the metric, weighted as `TapMoments.weights`.
    """
    own, kind = train.own(task), held_out.turned.dtype
    vectors = spectrum.vectors.to(kind)
    wanted = train.pooled_xy(task) - spectrum.xx[:, own]
    xy = test.pooled_xy(task)
    target, change = (
        vectors.T @ measured(d / spectrum.scale_in[:, None], scale_out, metric).to(kind)
        for d in (wanted, xy - held_out.xx[:, own])
    )  # (D, C); X'D of the fold
    masses, along, apart = _between(spectrum, train, test, task, scale_out, metric)
    start = _untouched(test, task, xy[own], held_out.xx[own, own], scale_out, metric, fold)
    start = start + (masses[:, None] * apart.square()).sum()
    solutions = torch.stack([target / (spectrum.values + ridge).to(kind)[:, None] for ridge in ridges])  # (R, D, C)
    fitted = solutions.mT @ target
    _, leading = torch.linalg.eigh((fitted + fitted.mT) / 2)
    leading = leading.flip(2)  # (R, C, C), the first direction first
    within = along.to(kind) @ solutions @ leading  # (R, G, C), what each direction says of each group's mean
    side_by_side = solutions.permute(1, 0, 2).flatten(1)  # one product for all ridges
    seen = (held_out.turned @ side_by_side).reshape(-1, len(ridges), len(scale_out)).permute(1, 0, 2)
    cost = _along(leading, solutions.mT @ seen) + (masses[:, None] * within.double().square()).sum(1)
    gain = _along(leading, solutions.mT @ change)
    gain = gain + (masses[:, None] * within.double() * (apart.to(kind) @ leading).double()).sum(1)
    steps = torch.cat([start.expand(len(ridges), 1), cost - 2 * gain], dim=1)
    return steps.cumsum(1)


def _along(vectors: Tensor, matrices: Tensor) -> Tensor:
    """v_i' M v_i for the columns of each (R, C, C), float64 (R, C)."""
    return ((matrices @ vectors) * vectors).sum(1, dtype=torch.float64)


def _untouched(
    test: TapMoments,
    task: str,
    xy: Tensor,
    xx: Tensor,
    scale_out: Tensor,
    metric: OutputMetric | None,
    fold: int,
) -> Tensor:
    """Squares of y - x within the groups of tokens; xy, xx (C, C) are pooled, of the tap's own channels."""
    if metric is None:
        squares = test.pooled_yy(task) - 2 * xy.diagonal() + xx.diagonal()
        return (squares / scale_out.square()).sum()
    spread = sum(w * s for w, s in zip(test.weights, metric.spreads[fold], strict=True))
    return scale_out.new_tensor(spread + cost_of(xx - xy - xy.T, scale_out, metric))


def _between(
    spectrum: Spectrum,
    train: TapMoments,
    test: TapMoments,
    task: str,
    scale_out: Tensor,
    metric: OutputMetric | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each group its mass (G,), and how far its held-out means of x (G, D) and d (G, C) are from the others'."""
    own = train.own(task)
    along, apart = [], []
    for ours, theirs in zip(test.groups, train.groups, strict=True):
        x = ours.mean_x() - theirs.mean_x()
        along.append((x / spectrum.scale_in) @ spectrum.vectors)
        apart.append(measured(ours.mean_y(task) - theirs.mean_y(task) - x[own], scale_out, metric))
    masses = [w * group.count for w, group in zip(test.weights, test.groups, strict=True)]
    return scale_out.new_tensor(masses), torch.stack(along), torch.stack(apart)


def diagonal_error(
    test: TapMoments,
    task: str,
    scales: Sequence[Tensor],
    offsets: Sequence[Tensor],
    scale_out: Tensor,
    metric: OutputMetric | None = None,
    fold: int = 0,
) -> float:
    """Squared error on held-out tokens of scale * x + offset; for each group of tokens a scale and an offset, (C,).

    metric, fold: as in `path_errors`.
    """
    own, total = test.own(task), 0.0
    groups = zip(test.weights, test.groups, scales, offsets, strict=True)
    for index, (weight, group, scale, offset) in enumerate(groups):
        part = group.block(own, slice(None))
        apart = measured(group.mean_y(task) - scale * group.mean_x()[own] - offset, scale_out, metric)
        if metric is None:
            x, y = group.deviation_x()[own], group.deviation_y(task)
            common = part.scatter_xy(task).diagonal() / group.count
            squares = (y.square() - 2 * scale * common + (scale * x).square()) / scale_out.square()
            total += weight * group.count * float((squares + apart.square()).sum())
        else:
            xy = scale[:, None] * part.scatter_xy(task)
            xx = torch.outer(scale, scale) * group.block(own, own).scatter_xx()
            within = metric.spreads[fold][index] + cost_of(xx - xy - xy.T, scale_out, metric)
            total += weight * (within + group.count * float(apart.square().sum()))
    return total


def total_error(
    moments: TapMoments,
    task: str,
    scale_out: Tensor,
    metric: OutputMetric | None = None,
    folds: Sequence[TapMoments] = (),
) -> float:
    """Squared deviations of the expert's features from their means, in the same units: what is to be explained.

    folds: with a metric, the moments of each fold; what the folds' means deviate by is added to `OutputMetric.spreads`.
    """
    if metric is None:
        return float((moments.pooled_yy(task) / scale_out.square()).sum())
    total = 0.0
    for index, (weight, whole) in enumerate(zip(moments.weights, moments.groups, strict=True)):
        for fold, spreads in zip(folds, metric.spreads, strict=True):
            part = fold.groups[index]
            apart = measured(part.mean_y(task) - whole.mean_y(task), scale_out, metric)
            total += weight * (spreads[index] + part.count * float(apart.square().sum()))
    return total


def output_scale(moments: TapMoments, task: str) -> Tensor:
    """How large an error in each channel is taken to be, (C,): `error_scale` of the patches."""
    return error_scale(moments.patches.deviation_y(task))
