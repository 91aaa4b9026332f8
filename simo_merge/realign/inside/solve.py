"""The change of one layer that brings the features behind it nearest to what is wanted, from streamed moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from simo_merge.realign.closed_form import scale_of
from simo_merge.realign.moments import Moments

WANTED = "wanted"
_LEAST_GAIN = 1e-6  # of the largest: a channel that the layer can hardly reach is left as it is


@dataclass(frozen=True)
class LayerChange:
    """What to add to a layer's weight (out, in), or (C,) of a LayerNorm, and to its bias, float64."""

    weight: Tensor
    bias: Tensor


def layer_moments(inputs: Tensor, wanted: Tensor, prefix: int, prefix_weight: float) -> Moments:
    """Moments of what a layer reads, a (B, N, D), and of the correction wanted behind it, d (B, N, C).

    prefix: how many of the N tokens are prefix tokens; each counts for prefix_weight patches.
    """
    parts = [(1.0, inputs[:, prefix:], wanted[:, prefix:])]
    parts += [(prefix_weight, inputs[:, :prefix], wanted[:, :prefix])] if prefix else []
    return reduce(
        add,
        (
            scaled(Moments.of(a.flatten(0, 1), {WANTED: d.flatten(0, 1)}, precise=False, wider=True), weight)
            for weight, a, d in parts
        ),
    )


def scaled(moments: Moments, weight: float) -> Moments:
    """Moments in which every token counts for `weight` tokens."""
    return Moments(
        count=weight * moments.count,  # type: ignore[arg-type]  # means and scatters only divide by it
        x=weight * moments.x,
        xx=weight * moments.xx,
        y={name: weight * value for name, value in moments.y.items()},
        xy={name: weight * value for name, value in moments.xy.items()},
        yy={name: weight * value for name, value in moments.yy.items()},
    )


def solve_linear(moments: Moments, ridge: float, gain: Tensor | None) -> LayerChange:
    """The change dW, db of a linear layer with the least regularised error behind it.

        sum || d - gain * (dW a + db) ||^2 + ridge || gain * dW scaled ||^2

    With R = A'A about the mean, scaled to a unit diagonal, gain * dW = ((R + ridge I)^-1 A'D scaled)'; db carries the
    mean over. The ridge draws towards the present weights, and dead inputs keep theirs.

    gain: the factor (C,) between the layer's output and the place of d; channels that it all but closes are kept.
    """
    xx, xd = moments.scatter_xx(), moments.scatter_xy(WANTED)
    scale = scale_of(xx)
    correlation = xx / torch.outer(scale, scale)
    correlation.diagonal().add_(ridge)
    solution = torch.linalg.solve(correlation, xd / scale[:, None]) / scale[:, None]  # (D, C)
    bias = moments.mean_y(WANTED) - solution.T @ moments.mean_x()
    return LayerChange(*_before_gain(solution.T, bias, gain))


def _before_gain(weight: Tensor, bias: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    if gain is None:
        return weight, bias
    gain = gain.to(weight.device)
    open_ = gain.abs() > _LEAST_GAIN * gain.abs().max()
    inverse = torch.where(open_, 1 / torch.where(open_, gain, 1.0), 0.0)
    return weight * inverse[:, None], bias * inverse


def solve_scale(moments: Moments, ridge: float) -> LayerChange:
    """The same for a LayerNorm, whose channels are each by themselves: d_c = dw_c a_c + db_c."""
    xx, xd = moments.scatter_xx().diagonal(), moments.scatter_xy(WANTED).diagonal()
    weight = torch.where(xx > 0, xd / (torch.where(xx > 0, xx, 1.0) * (1 + ridge)), 0.0)
    return LayerChange(weight, moments.mean_y(WANTED) - weight * moments.mean_x())


def solve(layer: nn.Module, moments: Moments, ridge: float, gain: Tensor | None) -> LayerChange:
    """The change of a linear layer or a LayerNorm."""
    return solve_scale(moments, ridge) if isinstance(layer, nn.LayerNorm) else solve_linear(moments, ridge, gain)


def apply(layer: nn.Module, change: LayerChange) -> int:
    """Add a change to a layer's weight and bias; how many numbers it set."""
    fitted = 0
    with torch.no_grad():
        for name, value in (("weight", change.weight), ("bias", change.bias)):
            parameter = getattr(layer, name)
            parameter.copy_(parameter.double() + value.to(parameter.device))
            fitted += parameter.numel()
    return fitted
