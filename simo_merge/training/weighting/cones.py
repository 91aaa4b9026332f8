"""Directions that hurt no task: the shortest average gradient, and gradients projected out of conflict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.training.weighting.base import State, reciprocal
from simo_merge.training.weighting.jacobian import GramianMethod, among_present
from simo_merge.training.weighting.quadratic import nonnegative_minimum

NORMALISATIONS = ("none", "l2", "loss", "loss+")


@dataclass(frozen=True)
class Mgda(GramianMethod):
    """MGDA: T Σ w_t g_t with the w on the simplex that makes ‖Σ w_t g_t / n_t‖ smallest.

    The minimum is found exactly, not by the paper's Frank-Wolfe steps.

    normalise: n_t: "none" 1, "l2" ‖g_t‖, "loss" L_t, "loss+" L_t ‖g_t‖. It changes which w is found; the gradients
        that it weighs are the tasks' own, as in the authors' code.

    Source: Sener and Koltun, arXiv 1810.04650, equation 3.
    """

    name: ClassVar[str] = "mgda"
    normalise: str = "none"

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise SimoError(f"unknown normalise {self.normalise!r} of mgda; known: {', '.join(NORMALISATIONS)}")

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """T w, (T,)."""
        return among_present(gramian, losses, self._shortest)

    def _shortest(self, gramian: Tensor, losses: Tensor) -> Tensor:
        size = torch.ones_like(losses)
        if self.normalise in ("l2", "loss+"):
            size = size * reciprocal(gramian.diagonal().sqrt())
        if self.normalise in ("loss", "loss+"):
            size = size * reciprocal(losses)
        scaled = gramian * size[:, None] * size
        return len(losses) * nonnegative_minimum(scaled, torch.zeros_like(losses), on_simplex=True)


@dataclass(frozen=True)
class UpGrad(GramianMethod):
    """UPGrad: the sum of the tasks' gradients, each projected onto the cone of directions that hurt no task.

    The projection of g_t onto {d: <g_s, d> >= 0 for all s} is J'v, v the minimum of v'Gv subject to v >= e_t.

    Source: Quinton and Rey, arXiv 2406.16232, definition 2 and proposition 1; their mean is a sum here.
    """

    name: ClassVar[str] = "upgrad"

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """Σ v over the tasks, (T,)."""
        total = torch.zeros_like(losses)
        for row, unit in zip(gramian, torch.eye(len(losses), dtype=gramian.dtype), strict=True):
            total += unit + nonnegative_minimum(gramian, row, on_simplex=False)
        return total
