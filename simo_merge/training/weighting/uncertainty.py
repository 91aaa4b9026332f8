"""Uncertainty weighting: each task's noise is learned, and its loss divided by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.training.weighting.adam import adam_step
from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, detached


@dataclass(frozen=True)
class Uncertainty(LossWeighting):
    """Homoscedastic uncertainty: minimises Σ exp(-s_t) L_t + s_t over the weights and s, so w_t = exp(-s_t).

    s_t = log σ_t² is learned by Adam and starts at 0. The paper has exp(-s)/2 for regression and exp(-s) for
    classification; here all tasks have one form, as in the published benchmarks, and the common half is left out:
    both terms carry it.

    lr: learning rate of s. The papers take the network's own over tens of thousands of steps; a run of hundreds
    needs a larger one to get as far.

    Source: Kendall et al., arXiv 1705.07115, equation 10 and section 3.2 (s = log σ²).
    """

    name: ClassVar[str] = "uncertainty"
    lr: float = 1e-2

    def __post_init__(self) -> None:
        self._positive("lr")

    def initial(self, tasks: int) -> State:
        """Log variances of 0."""
        return {"log_variance": torch.zeros(tasks, dtype=torch.float64)}

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """exp(-s), (T,)."""
        return torch.exp(-state["log_variance"])

    def after(self, step: SharedStep, state: State) -> None:
        """One step of s down its gradient 1 - exp(-s_t) L_t, taken where the network's own was taken."""
        losses = detached(step.losses)
        gradient = torch.where(losses > 0, 1 - torch.exp(-state["log_variance"]) * losses, 0.0)  # 0: no label
        adam_step(state, "log_variance", gradient, self.lr)
