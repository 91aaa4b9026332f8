"""Spherical interpolation between two experts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.linear import weighted_sum
from simo_merge.merging.elementwise.pieces import map_spans, merge_elementwise, vectors_of
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import one_of, share
from simo_merge.merging.parameter import Parameter

_PARALLEL = 0.9995  # |cos| from which the arc is a line


@dataclass(frozen=True)
class Slerp(MergeMethod):
    """Spherical interpolation of two experts, parameter by parameter.

    slerp(t; u, v) = sin((1 - t) w) / sin(w) u + sin(t w) / sin(w) v, where w is the angle between u and v.
    "task_vectors": theta_0 + slerp(t; tau_1, tau_2), which keeps the length that an average loses where they disagree.
    "weights": slerp(t; theta_1, theta_2). Where |cos w| > 0.9995, or u or v is zero, it is the line (1 - t) u + t v.

    t: in [0, 1]; 0 is the first expert, 1 the second. between: "task_vectors" or "weights".

    Raises:
        SimoError: an option out of range or, when the experts are seen, other than two.

    Source: Shoemake, "Animating rotation with quaternion curves", 1985; the threshold is that of common merging tools.
    """

    name: ClassVar[str] = "slerp"
    t: float = 0.5
    between: str = "task_vectors"

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", share(self.name, "t", self.t, zero=True))
        one_of(self.name, "between", self.between, ("task_vectors", "weights"))

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        if parameter.count != 2:
            raise SimoError(
                f"{self.name} interpolates between two experts, got {parameter.count}; merge more of them with another "
                "method, for example weight-average"
            )
        if self.between == "weights":  # the task vectors from an origin of zero
            parameter = Parameter(parameter.name, torch.zeros_like(parameter.base), parameter.experts)
        weights = _weights(parameter, self.t)
        return merge_elementwise(parameter, lambda vectors, _: weighted_sum(vectors, weights))


def _weights(parameter: Parameter, t: float) -> tuple[float, float]:
    """The factors of u and v."""
    vectors_in = vectors_of(parameter)

    def products(span: slice) -> Tensor:
        u, v = (vector.double() for vector in vectors_in(span))
        return torch.stack([u @ u, v @ v, u @ v]).cpu()

    spans = map_spans(products, parameter.base.numel(), parameter.base.device)
    uu, vv, uv = torch.stack(spans).sum(0).tolist() if spans else (0.0, 0.0, 0.0)
    length = math.sqrt(uu) * math.sqrt(vv)
    cosine = uv / length if length > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
