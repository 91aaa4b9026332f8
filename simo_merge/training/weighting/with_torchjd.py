"""Gradient methods that TorchJD computes; the package is an extra."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.training.weighting.base import State
from simo_merge.training.weighting.jacobian import GradientMethod, GramianMethod, among_present

SCALES = ("min", "median", "rmse")


def _aggregation(method: str) -> ModuleType:
    """`torchjd.aggregation`.

    Raises:
        SimoError: It is not installed.
    """
    try:
        from torchjd import aggregation
    except ImportError as error:
        raise SimoError(f'{method} needs torchjd; install it with pip install "simo_merge[joint]"') from error
    return aggregation


@dataclass(frozen=True)
class PcGrad(GramianMethod):
    """PCGrad: each gradient loses its component along those that it conflicts with, in random order; then the sum.

    Source: Yu et al., arXiv 2001.06782, algorithm 1; TorchJD's implementation.
    """

    name: ClassVar[str] = "pcgrad"

    def initial(self, tasks: int) -> State:
        """Nothing, once TorchJD is there."""
        _aggregation(self.name)
        return {}

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """What is left of each gradient in the sum, (T,)."""
        weights: Tensor = _aggregation(self.name).PCGradWeighting()(gramian)
        return weights


@dataclass(frozen=True)
class ImtlG(GramianMethod):
    """IMTL-G: T Σ w_t g_t, Σ w = 1, with the same projection onto every g_t / ‖g_t‖.

    Source: Liu et al., Towards Impartial Multi-task Learning (ICLR 2021), equation 6; TorchJD's implementation.
    """

    name: ClassVar[str] = "imtl-g"

    def initial(self, tasks: int) -> State:
        """Nothing, once TorchJD is there."""
        _aggregation(self.name)
        return {}

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """T w, (T,); they may be negative."""
        solve = _aggregation(self.name).IMTLGWeighting()
        return among_present(gramian, losses, lambda inner, some: len(some) * solve(inner))


@dataclass(frozen=True)
class AlignedMtl(GramianMethod):
    """Aligned-MTL: the sum of the gradients after their principal components were given one length.

    With G = V Λ V' the weights are √λ V Λ^(-1/2) V' 1.

    scale: which eigenvalue λ is: the smallest that is not 0 ("min", the paper's), "median", or the mean ("rmse", the
        authors' code).

    Source: Senushkin et al., arXiv 2305.19000, algorithm 1; TorchJD's implementation.
    """

    name: ClassVar[str] = "aligned-mtl"
    scale: str = "min"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise SimoError(f"unknown scale {self.scale!r} of aligned-mtl; known: {', '.join(SCALES)}")

    def initial(self, tasks: int) -> State:
        """Nothing, once TorchJD is there."""
        _aggregation(self.name)
        return {}

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """√λ V Λ^(-1/2) V' 1, (T,)."""
        preference = torch.ones_like(losses)
        weights: Tensor = _aggregation(self.name).AlignedMTLWeighting(preference, self.scale)(gramian)
        return weights


@dataclass(frozen=True)
class GradDrop(GradientMethod):
    """GradDrop: in each coordinate one sign is drawn, and gradients of the other sign are dropped there.

    The positive sign has the probability P = (1 + Σ g_t / Σ |g_t|) / 2. The paper drops in the gradient of the last
    shared activations; here, as in the benchmarks of later papers, in that of the shared parameters.

    Source: Chen et al., arXiv 2010.06808, algorithm 1 (leak 0, f the identity); TorchJD's implementation.
    """

    name: ClassVar[str] = "graddrop"

    def initial(self, tasks: int) -> State:
        """Nothing, once TorchJD is there."""
        _aggregation(self.name)
        return {}

    def combine(self, jacobian: Tensor, losses: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The sum of what is not dropped, (D,); no task has a weight of its own."""
        direction: Tensor = _aggregation(self.name).GradDrop()(jacobian)
        return direction, torch.ones_like(losses)
