"""Auto-lambda: weights whose next step would lower the losses of a second mini-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simo_merge.distributed import add_up
from simo_merge.training.weighting.adam import adam_step
from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, detached


@dataclass(frozen=True)
class AutoLambda(LossWeighting):
    """Auto-λ: λ moves down Σ_s L_s(second batch; θ - η ∇_θ Σ_t λ_t L_t), all tasks being primary.

    To first order its gradient is -η <∇_θ' Σ_s L_s(second batch), ∇_θ L_t>, θ' the parameters after the virtual
    step; the inner products are differences of losses at θ ± ε v, v = η ∇_θ', ε = 0.01 / ‖v‖. A step costs one
    more backward pass of the batch, a whole step of a second batch of the training set, and two forward passes.
    θ is all of encoder and decoders, η each one's learning rate in this step.

    start: λ at the beginning. lr: learning rate of λ (Adam); λ stays at 0 or above.

    Source: Liu et al., arXiv 2202.03091, equations 3 to 6; their start 0.1 and lr 1e-4.
    """

    name: ClassVar[str] = "auto-lambda"
    needs_second_batch: ClassVar[bool] = True
    start: float = 0.1
    lr: float = 1e-4

    def __post_init__(self) -> None:
        self._positive("start", "lr")

    def initial(self, tasks: int) -> State:
        """λ = start for all tasks."""
        return {"weights": torch.full((tasks,), self.start, dtype=torch.float64)}

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """λ after its own step, (T,)."""
        adam_step(state, "weights", self._gradient(step, state["weights"]), self.lr)
        state["weights"] = state["weights"].clamp_min(0.0)
        return state["weights"]

    def _gradient(self, step: SharedStep, weights: Tensor) -> Tensor:
        """The gradient of the second batch's losses for λ, (T,), by differences."""
        assert step.other is not None, "needs_second_batch asks for it"
        parameters, rates = _with_rates(step)
        total = (weights.to(step.losses) * step.losses).sum()
        virtual = _gradients(total, parameters, retain=True)
        with moved(parameters, [-rate * g for rate, g in zip(rates, virtual, strict=True)]):
            ahead = _gradients(step.other().sum(), parameters)
        ahead = [rate * g for rate, g in zip(rates, ahead, strict=True)]
        length = float(torch.stack([part.norm() for part in ahead]).norm())
        if length == 0:
            return torch.zeros_like(weights)
        reach = 0.01 / length
        with moved(parameters, [reach * part for part in ahead]):
            up = detached(step.again(exact=True))
        with moved(parameters, [-reach * part for part in ahead]):
            down = detached(step.again(exact=True))
        return -(up - down) / (2 * reach)


@contextmanager
def moved(parameters: Sequence[nn.Parameter], by: Sequence[Tensor]) -> Iterator[None]:
    """The parameters displaced within the block; afterwards they have their old bits.

    It writes through `.data`, which autograd does not count as a change: a graph made before the block is still
    right after it.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter, change in zip(parameters, by, strict=True):
            parameter.data.add_(change)
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)


def _with_rates(step: SharedStep) -> tuple[list[nn.Parameter], list[float]]:
    own = [parameter for decoder in step.decoders for parameter in decoder]
    rates = [step.rates[0]] * len(step.encoder) + [step.rates[1]] * len(own)
    return [*step.encoder, *own], rates


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter], retain: bool = False) -> list[Tensor]:
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    add_up(whole)
    return whole
