"""GradNorm: weights that bring the tasks' gradients to sizes by how far each task has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.distributed import add_up
from simo_merge.errors import SimoError
from simo_merge.training.weighting.adam import adam_step
from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, reciprocal

LAYERS = ("last", "encoder")
_LEAST = 1e-4  # a weight that reaches 0 leaves its task without a gradient to come back by


@dataclass(frozen=True)
class GradNorm(LossWeighting):
    """GradNorm: w moves down the gradient of Σ |G_t - mean(G) r_t^alpha|, G_t = w_t ‖∇_W L_t‖.

    r_t = (L_t / L_t(0)) / mean over tasks of the same, L(0) from the first step of this stage. The target is held
    constant, so the gradient for w_t is sign(G_t - target_t) ‖∇_W L_t‖: no second derivatives. After each step
    (Adam) the weights are scaled to the sum T.

    alpha: how strongly tasks that lag are pulled. lr: learning rate of w.
    layer: which shared weights W: "last", the last block that a decoder reads (T short backward passes), or
        "encoder", all of it (T whole ones).

    Source: Chen et al., arXiv 1711.02257, algorithm 1; alpha 1.5 is theirs on NYUv2, and lr 0.025.
    """

    name: ClassVar[str] = "gradnorm"
    alpha: float = 1.5
    lr: float = 0.025
    layer: str = "last"

    def __post_init__(self) -> None:
        self._positive("lr")
        self._positive("alpha", zero=True)
        if self.layer not in LAYERS:
            raise SimoError(f"unknown layer {self.layer!r} of gradnorm; known: {', '.join(LAYERS)}")

    def initial(self, tasks: int) -> State:
        """Weights of 1."""
        return {"weights": torch.ones(tasks, dtype=torch.float64)}

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """The weights of this step, (T,); those of the next are prepared."""
        first = state.get("first", torch.zeros_like(losses))
        state["first"] = torch.where(first > 0, first, losses)  # a task may have no label in the first batches
        current = state["weights"]
        norms = self._norms(step)
        progress = losses * reciprocal(state["first"])
        relative = progress / progress.mean().clamp_min(torch.finfo(torch.float64).tiny)
        sizes = current * norms
        target = sizes.mean() * relative**self.alpha
        adam_step(state, "weights", torch.sign(sizes - target) * norms, self.lr)
        moved = state["weights"].clamp_min(_LEAST)
        state["weights"] = moved * (len(moved) / moved.sum())
        return current

    def _norms(self, step: SharedStep) -> Tensor:
        """‖∇_W L_t‖ of every task, (T,)."""
        weights = step.last_layer if self.layer == "last" else step.encoder
        norms = []
        for loss in step.losses.unbind():
            found: Sequence[Tensor | None] = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            parts = [part.float() for part in found if part is not None]
            add_up(parts)
            norms.append(torch.stack([part.norm() for part in parts]).norm())
        return torch.stack(norms).to("cpu", torch.float64)
