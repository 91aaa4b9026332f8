"""DARE: drop entries of the task vectors at random and rescale the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from simo_merge.merging.elementwise.linear import weighted_sum
from simo_merge.merging.elementwise.pieces import merge_elementwise
from simo_merge.merging.elementwise.ties import disjoint, elect
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import Scale, coefficients, one_of, scale_of, share, whole
from simo_merge.merging.parameter import Parameter


def survivors(size: int, drop: float, seed: int, name: str, task: int) -> Tensor:
    """Which of `size` entries stay, each with probability 1 - drop: (size,) of booleans, on the CPU.

    They depend on the seed, the parameter's name and the task's place alone: not on the order of parameters, on how
    they are read, or on the device.
    """
    key = hashlib.blake2b(f"{seed}/{task}/{name}".encode(), digest_size=16).digest()
    numbers = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
    drawn = numbers.integers(0, 1 << 32, size, dtype=np.uint32)
    return torch.from_numpy(drawn >= np.uint32(min(round(drop * (1 << 32)), (1 << 32) - 1)))


@dataclass(frozen=True)
class Dare(MergeMethod):
    """Drop and rescale: tau~_t = m_t * tau_t / (1 - drop), m_t ~ Bernoulli(1 - drop); then the tau~_t are combined.

    "linear": theta_0 + sum_t s_t tau~_t. "ties": tau~_t takes the place of the trimmed vector of TIES: signs are
    elected by mass among the s_t tau~_t, and those that agree are summed, as common tools do, or averaged
    ("ties-mean"), as in `Ties`.

    drop: in [0, 1). combine: "linear", "ties" or "ties-mean". scale: as in `TaskArithmetic`. seed: of the masks.

    Raises:
        SimoError: an option out of range.

    Source: Yu et al., arXiv 2311.03099.
    """

    name: ClassVar[str] = "dare"
    drop: float = 0.9
    combine: str = "linear"
    scale: Scale = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", share(self.name, "drop", self.drop, zero=True, one=False))
        one_of(self.name, "combine", self.combine, ("linear", "ties", "ties-mean"))
        object.__setattr__(self, "seed", whole(self.name, "seed", self.seed, least=0))
        object.__setattr__(self, "scale", scale_of(self.name, self.scale))

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        weights = [weight / (1 - self.drop) for weight in coefficients(self.name, self.scale, parameter)]
        size, device = parameter.base.numel(), parameter.base.device
        masks = [survivors(size, self.drop, self.seed, parameter.name, t).to(device) for t in range(parameter.count)]

        def update(vectors: list[Tensor], span: slice) -> Tensor:
            for vector, mask in zip(vectors, masks, strict=True):
                vector.mul_(mask[span])
            if self.combine == "linear":
                return weighted_sum(vectors, weights)
            weighted = [vector.mul_(weight) for vector, weight in zip(vectors, weights, strict=True)]
            return disjoint(weighted, elect(weighted, "mass"), "mean" if self.combine == "ties-mean" else "sum")

        return merge_elementwise(parameter, update)
