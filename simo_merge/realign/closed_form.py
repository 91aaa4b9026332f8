"""Linear surgery in closed form: ridge regression of reduced rank, from moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from simo_merge.models.aligners import SurgeryTap
from simo_merge.realign.channels import channel_deviations
from simo_merge.realign.features import Features
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.output_metric import OutputMetric

_TINY = 1e-12


@dataclass(frozen=True)
class LowRankMap:
    """x -> up @ (down @ x); down (r, D), up (C, r), float64."""

    down: Tensor
    up: Tensor


def reduced_rank_ridge(
    xx: Tensor,
    xd: Tensor,
    scale_out: Tensor,
    rank: int,
    ridge: float,
    towards: Tensor | None = None,
    metric: OutputMetric | None = None,
) -> LowRankMap:
    """The map A = up down of rank r with the least weighted, regularised squared error.

        || (D - X A') / scale_out ||^2 + ridge || A' scaled ||^2

    With R the correlation-like matrix X'X scaled to a unit diagonal, the ridge solution is
    B = (R + ridge I)^-1 X'D (scaled), and the best map of rank r is B V V', with V the leading eigenvectors of
    B' (R + ridge I) B (Izenman 1975; with a ridge: Mukherjee and Zhu 2011). ViT residual streams have a few huge
    channels; scaling first makes one ridge fit them all.

    Args:
        xx: X'X, (D, D). xd: X'D, (D, C), D what is to be predicted.
        scale_out: how large an error in each output channel is taken to be, (C,).
        rank: r, at most C.
        ridge: relative to the unit diagonal.
        towards: A' (D, C) that the ridge draws the solution to; default: 0.
        metric: K, which directions of scaled errors e cost more, e' K e; the penalty is measured in it too, so that it
            decides which directions of the ridge solution a rank keeps, and is without effect at full rank. Default: I.
    """
    scale_in = scale_of(xx)
    correlation = xx / torch.outer(scale_in, scale_in)
    correlation.diagonal().add_(ridge)
    target = xd / torch.outer(scale_in, scale_out)
    if towards is not None:
        target = target + ridge * towards * scale_in[:, None] / scale_out
    if metric is not None:
        target = target @ metric.root  # errors in the new coordinates cost alike
    solution = torch.linalg.solve(correlation, target)
    fitted = solution.T @ target  # = B' (R + ridge I) B
    _, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
    leading = vectors[:, -min(rank, len(vectors)) :]  # (C, r)
    back = leading if metric is None else metric.inverse @ leading
    return LowRankMap(
        down=((solution @ leading) / scale_in[:, None]).T,
        up=back * scale_out[:, None],
    )


def scale_of(xx: Tensor) -> Tensor:
    """Root of the diagonal of X'X, (D,), and never 0."""
    diagonal = xx.diagonal()
    return diagonal.clamp_min(_TINY * diagonal.max().clamp_min(_TINY)).sqrt()


@dataclass(frozen=True)
class TapChange:
    """tokens -> own tokens + up (down tokens) + offset; one offset for the patches, then one a prefix token."""

    down: Tensor
    up: Tensor
    offsets: list[Tensor]

    @classmethod
    def with_means(cls, moments: TapMoments, task: str, down: Tensor, up: Tensor) -> TapChange:
        """The change with the offsets that carry the mean of every group over exactly."""
        own = moments.own(task)
        offsets = [group.mean_y(task) - group.mean_x()[own] - up @ (down @ group.mean_x()) for group in moments.groups]
        return cls(down, up, offsets)


def solve_change(
    moments: TapMoments, task: str, rank: int | None, ridge: float, metric: OutputMetric | None = None
) -> TapChange:
    """The change of least squared error for one tap and task.

    The map minimises the error within each group of tokens (patches, each prefix token), weighted by
    `TapMoments.weights`; the offsets then carry every group's mean over exactly.

    rank: of the map; None for no reduction. ridge: relative to unit variance. metric: see `reduced_rank_ridge`.
    """
    xx = moments.pooled_xx()
    scale_out = error_scale(moments.patches.deviation_y(task))
    wanted = moments.pooled_xy(task) - xx[:, moments.own(task)]
    rank = len(scale_out) if rank is None else rank
    low_rank = reduced_rank_ridge(xx, wanted, scale_out, rank, ridge, metric=metric)
    return TapChange.with_means(moments, task, low_rank.down, low_rank.up)


def set_offsets(patch_offset: Tensor, prefix_offset: Tensor, offsets: Sequence[Tensor]) -> None:
    """Write the offset of the patches (C,) and those of the prefix tokens (P, C)."""
    with torch.no_grad():
        patch_offset.copy_(offsets[0])
        for index, offset in enumerate(offsets[1:]):
            prefix_offset[index].copy_(offset)


def start_surgery(moments: TapMoments, task: str, tap: SurgeryTap, ridge: float, margin: float = 4.0) -> None:
    """Start surgery, Z - W_up ReLU(W_down Z), at a linear map of rank r - 1 fitted in closed form.

    Surgery has no bias, so the map is fitted to uncentred moments. A direction w with w.z close to 1 on every
    token (there is one: ViT features have large means) keeps the units open:

        ReLU(v_i.z + margin w.z) = v_i.z + margin w.z   for i < r,   ReLU(w.z) = w.z,

    where v_i.z has unit mean square; the last unit takes the margins off again. Where the units are open the
    module equals the linear map, and gradient fitting may close them where that helps. Units that the map has no
    use for (a rank above the channels) stay as they were.
    """
    weighted = list(zip(moments.weights, moments.groups, strict=True))
    xx = reduce(add, (weight * group.xx for weight, group in weighted))
    xy = reduce(add, (weight * group.xy[task] for weight, group in weighted))
    x = reduce(add, (weight * group.x for weight, group in weighted))
    count = sum(weight * group.count for weight, group in weighted)
    scale_out = error_scale(moments.patches.deviation_y(task))
    rank = tap.down.out_features
    low_rank = reduced_rank_ridge(xx, xy - xx, scale_out, rank - 1, ridge)
    size = ((low_rank.down @ xx) * low_rank.down).sum(1).div(count).clamp_min(_TINY).sqrt()  # (r - 1,)
    down, up = low_rank.down / size[:, None], low_rank.up * size
    scale_in = xx.diagonal().clamp_min(_TINY).sqrt()
    constant = torch.linalg.solve(
        xx / torch.outer(scale_in, scale_in) + ridge * torch.eye(len(xx), dtype=xx.dtype), x / scale_in
    )
    constant = constant / scale_in  # (C,), w
    with torch.no_grad():
        units = len(down) + 1
        tap.down.weight[:units] = torch.cat([down + margin * constant, constant[None]])
        tap.up.weight[:, :units] = torch.cat([-up, margin * up.sum(1, keepdim=True)], dim=1)


def error_scale(deviation: Tensor) -> Tensor:
    """How large an error in each channel is taken to be: the expert's deviation, a tenth of the median at least.

    With that floor a channel that hardly varies counts for as much as a hundred others; without, it would use up
    the rank.
    """
    varies = deviation > 0
    typical = deviation[varies].median() if varies.any() else deviation.new_ones(())
    return deviation.clamp_min(0.1 * typical)


def error_scales(expert: Features) -> list[Tensor]:
    """`error_scale` of the expert's patches at each tap, (C,), float32."""
    return [error_scale(channel_deviations(patches).float()) for patches in expert.patches]
