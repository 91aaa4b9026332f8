"""A metric on a tap's channels: which directions of an error count for how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.errors import SimoError


@dataclass(frozen=True)
class OutputMetric:
    """The metric M = S^-1 K S^-1 of errors e (C,) at one tap: they cost e' M e.

    S holds the scales that errors are measured in (`closed_form.error_scale`) and is given beside the metric, so that
    K = I is the plain objective. root: K^(1/2), symmetric (C, C). inverse: K^(-1/2).
    spreads: for each fold of images and each group of tokens, what the expert's deviations from their mean cost in
    sum; held-out error is told as a share of them.
    """

    root: Tensor
    inverse: Tensor
    spreads: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, cost: Tensor, spreads: tuple[tuple[float, ...], ...] = ()) -> OutputMetric:
        """The metric of a positive definite K (C, C).

        Raises:
            SimoError: K is not finite or not positive definite.
        """
        if not torch.isfinite(cost).all():
            raise SimoError("the metric of a tap holds NaN or infinity; are the decoder's weights and features finite?")
        values, vectors = torch.linalg.eigh((cost + cost.T) / 2)
        if float(values[0]) <= 0:
            raise SimoError(
                f"the metric of a tap has the eigenvalue {float(values[0]):.3g}, expected positive ones; raise its "
                "floor, which adds to all of them"
            )
        return cls((vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T, spreads)

    def to(self, like: Tensor) -> OutputMetric:
        """The same metric on the device and in the type of a tensor."""
        return OutputMetric(self.root.to(like), self.inverse.to(like), self.spreads)


def measured(values: Tensor, scale: Tensor, metric: OutputMetric | None) -> Tensor:
    """Errors (..., C) in coordinates in which the sum of their squares is what they cost: S^-1, then K^(1/2)."""
    values = values / scale
    return values if metric is None else values @ metric.root


def cost_of(squares: Tensor, scale: Tensor, metric: OutputMetric) -> float:
    """What errors with these second moments E'E (C, C) cost in sum: tr(M E'E)."""
    return float((metric.root @ metric.root * (squares / torch.outer(scale, scale))).sum())


Metrics = Mapping[tuple[str, int], OutputMetric]
"""A metric for each task and tap."""
