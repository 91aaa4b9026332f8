"""Gradient methods: the encoder's gradient made from those of the tasks, instead of from a sum of losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simo_merge.distributed import add_up, once
from simo_merge.training.weighting.base import SharedStep, State, Weighting, detached

Gradients = Sequence[Tensor | None]  # of parameters that a loss may not depend on


class GradientMethod(Weighting):
    """A weighting of the encoder's gradients g_t = ∇_θ L_t, which are the rows of the Jacobian (T, D).

    Decoders get the gradient of their own loss. A step makes T backward passes through the encoder and holds the
    Jacobian: 4 T D bytes beside what a plain step holds.
    """

    def backward(self, step: SharedStep, state: State) -> Tensor:
        """Gradients of the decoders, and the direction that `combine` makes for the encoder."""
        jacobian, used = task_gradients(step)
        direction, weights = self.combine(jacobian, detached(step.losses), state)
        _write(once(direction), step.encoder, used)
        if step.extra is not None:
            step.extra.backward()  # type: ignore[no-untyped-call]  # adds to what is there
        return weights

    @abstractmethod
    def combine(self, jacobian: Tensor, losses: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The encoder's gradient (D,), and the weights (T,) float64 of the tasks in it.

        Args:
            jacobian: (T, D) float32, where the encoder is.
            losses: (T,) float64 on the CPU.
            state: Read and changed.
        """


class GramianMethod(GradientMethod):
    """A gradient method whose direction is Σ w_t g_t with weights from the inner products <g_s, g_t> alone."""

    def combine(self, jacobian: Tensor, losses: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Σ w_t g_t."""
        gramian = (jacobian @ jacobian.T).to("cpu", torch.float64)
        if not gramian.isfinite().all():  # no solver gets to see it; the trainer refuses the sum, and says why
            return jacobian.sum(dim=0), torch.ones_like(losses)
        weights = self.weights(gramian, losses, state)
        return weights.to(jacobian) @ jacobian, weights

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        """The weights w, (T,) float64.

        Args:
            gramian: G = J J', (T, T) float64 on the CPU.
            losses: (T,) float64 on the CPU.
            state: Read and changed.
        """


def among_present(gramian: Tensor, losses: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Weights (T,) for the tasks that have a gradient, and 0 for the others, which have no label in the batch.

    A gradient of 0 is no party to a conflict: it would make every direction Pareto stationary.
    """
    some = gramian.diagonal() > 0
    found = torch.zeros_like(losses)
    if some.any():
        found[some] = weights(gramian[some][:, some], losses[some])
    return found


def task_gradients(step: SharedStep) -> tuple[Tensor, list[bool]]:
    """Every task's gradient for the encoder, flat, (T, D), over all processes; the decoders' go into `.grad`.

    Also, for each of the encoder's parameters, whether any task depends on it: what none does (a final norm after
    the last tap) must keep an empty gradient, or weight decay would move it.
    """
    sizes = [parameter.numel() for parameter in step.encoder]
    jacobian = step.encoder[0].new_zeros(len(step.losses), sum(sizes))
    used = [False] * len(sizes)
    for row, (loss, decoder) in enumerate(zip(step.losses.unbind(), step.decoders, strict=True)):
        last = row == len(step.losses) - 1 and step.extra is None
        found: Gradients = torch.autograd.grad(
            loss, [*decoder, *step.encoder], retain_graph=not last, allow_unused=True
        )
        for parameter, gradient in zip(decoder, found, strict=False):
            parameter.grad = gradient
        for index, part in enumerate(torch.split(jacobian[row], sizes)):
            gradient = found[len(decoder) + index]
            if gradient is not None:
                part.copy_(gradient.reshape(-1))
                used[index] = True
    add_up([jacobian])
    return jacobian, used


def _write(direction: Tensor, encoder: Sequence[nn.Parameter], used: Sequence[bool]) -> None:
    parts = torch.split(direction, [parameter.numel() for parameter in encoder])
    for parameter, part, needed in zip(encoder, parts, used, strict=True):
        parameter.grad = part.view_as(parameter) if needed else None
