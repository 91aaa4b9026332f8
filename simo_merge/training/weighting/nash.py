"""Nash-MTL: the tasks bargain over the direction of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.training.weighting.base import State
from simo_merge.training.weighting.jacobian import GramianMethod

_STEPS = 200  # Newton needs about ten; the bound only ends a matrix that holds NaN


@dataclass(frozen=True)
class NashMtl(GramianMethod):
    """Nash bargaining solution: Σ α_t g_t with the α > 0 for which G α = 1 / α.

    α is the minimum of α'Gα / 2 - Σ log α, which is convex: Newton's method finds it to machine precision. The
    step's length is √T whatever the gradients', as in the paper; AdamW takes no notice. A task without a gradient
    (no label in the batch) has α = 0.

    every: how many steps an α is kept for.

    Source: Navon et al., arXiv 2202.01017, claim 3.1 and algorithm 1.
    """

    name: ClassVar[str] = "nash-mtl"
    every: int = 1

    def __post_init__(self) -> None:
        every: Any = self.every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SimoError(f"the every of nash-mtl must be a whole number, 1 or more; got {every!r}")

    def initial(self, tasks: int) -> State:
        """No step made."""
        return {"age": torch.zeros(1), "alpha": torch.ones(tasks, dtype=torch.float64)}

    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """α, (T,)."""
        if int(state["age"]) % self.every == 0:
            state["alpha"] = bargain(gramian)
        state["age"] = state["age"] + 1
        return state["alpha"]


def bargain(gramian: Tensor) -> Tensor:
    """The α (T,) with G α = 1 / α, and 0 where the diagonal of G is 0.

    G is taken with unit diagonal and 1e-9 more: opposite gradients (Pareto stationary) have no solution otherwise.

    Args:
        gramian: G (T, T), positive semidefinite, float64.
    """
    lengths = gramian.diagonal().sqrt()
    some = lengths > 0
    alpha = torch.zeros_like(lengths)
    unit = gramian[some][:, some] / (lengths[some][:, None] * lengths[some])
    unit = unit + 1e-9 * torch.eye(len(unit), dtype=unit.dtype)
    scaled = torch.ones(len(unit), dtype=unit.dtype)
    for _ in range(_STEPS):
        slope = unit @ scaled - 1 / scaled
        step = -torch.linalg.solve(unit + torch.diag(scaled**-2), slope)
        decrement = float((-slope @ step).clamp_min(0).sqrt())
        scaled = scaled + step / (1 + decrement if decrement > 0.25 else 1)  # damped: α stays above 0
        if decrement < 1e-12:
            break
    alpha[some] = scaled / lengths[some]
    return alpha
