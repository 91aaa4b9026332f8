"""FAMO: the worst relative improvement is raised, at the cost of one more forward pass instead of T gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.training.weighting.adam import adam_step
from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, detached, reciprocal

_EPSILON = 1e-8  # keeps the logarithm of a loss of 0 finite


@dataclass(frozen=True)
class Famo(LossWeighting):
    """Fast adaptive multi-task optimisation: w_t = T c z_t / L_t, z = softmax(ξ), c = 1 / Σ (z_s / L_s).

    After the step the losses L' of the same batch tell how each task moved, and Adam moves ξ down
    J' (log L - log L'), J the Jacobian of softmax at ξ: tasks that improved least come to weigh more.

    lr: learning rate of ξ. decay: its L2 decay (γ in the paper).

    Source: Liu et al., arXiv 2306.03792, algorithm 1, and the γ that they take on NYUv2; the losses are bounded by 0
    here, so nothing is subtracted.
    """

    name: ClassVar[str] = "famo"
    lr: float = 0.025
    decay: float = 0.01

    def __post_init__(self) -> None:
        self._positive("lr")
        self._positive("decay", zero=True)

    def initial(self, tasks: int) -> State:
        """ξ = 0: equal shares of the relative improvement."""
        return {"logits": torch.zeros(tasks, dtype=torch.float64)}

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """T c z / L, (T,); they sum to T."""
        ratio = torch.softmax(state["logits"], dim=0) * reciprocal(losses)
        return len(losses) * ratio / ratio.sum().clamp_min(torch.finfo(torch.float64).tiny)

    def after(self, step: SharedStep, state: State) -> None:
        """Move ξ by what the step did to each loss."""
        before, now = detached(step.losses) + _EPSILON, detached(step.again()) + _EPSILON
        improved = before.log() - now.log()
        shares = torch.softmax(state["logits"], dim=0)
        adam_step(state, "logits", shares * (improved - (shares * improved).sum()), self.lr, self.decay)
