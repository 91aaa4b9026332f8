"""What every way of weighing tasks is: a small typed object that turns T losses into gradients of shared weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError

State = dict[str, Tensor]
"""What a weighting carries from step to step: small tensors on the CPU, written with the state of a run."""


class Again(Protocol):
    """Computes the losses of a batch once more."""

    def __call__(self, exact: bool = False) -> Tensor:
        """(T,) without graph, under the same dropout; in float32 if `exact`, else in the run's precision."""
        ...


@dataclass(frozen=True)
class SharedStep:
    """One step of the second stage, as a weighting sees it.

    losses: (T,) float32, with their graph. Values are those of the whole batch; where processes share it, the graph
        is this process's part, and a gradient is what `distributed.add_up` makes of all parts.
    encoder: its parameters; decoders: those of each task.
    last_layer: parameters of the last encoder block that a decoder reads.
    number: the steps of this stage made before. epoch_steps: steps for once through the data.
    rates: learning rates of encoder and decoders in this step.
    generator: on the CPU, seeded by the run's seed and the step.
    again: losses of the same batch with the parameters as they are now.
    other: losses (T,) of a second batch, with their graph; None unless the weighting asks for one.
    extra: a loss that is no task's (distillation), added with weight one.
    """

    losses: Tensor
    encoder: tuple[nn.Parameter, ...]
    decoders: tuple[tuple[nn.Parameter, ...], ...]
    last_layer: tuple[nn.Parameter, ...]
    number: int
    epoch_steps: int
    rates: tuple[float, float]
    generator: torch.Generator
    again: Again
    other: Callable[[], Tensor] | None = None
    extra: Tensor | None = None


class Weighting(ABC):
    """Leaves gradients in the parameters of encoder and decoders; a frozen dataclass whose fields are its options.

    Whatever the method, equal weights are ones and not 1/T: what the papers average is multiplied by T, so that a
    method that finds nothing to balance gives the encoder the sum of the tasks' gradients.

    To add one: a file with such a class, and its entry in `registry.WEIGHTINGS`.
    """

    name: ClassVar[str]
    needs_second_batch: ClassVar[bool] = False

    def initial(self, tasks: int) -> State:
        """The state before the first step.

        Raises:
            SimoError: A library that the method needs is missing.
        """
        return {}

    @abstractmethod
    def backward(self, step: SharedStep, state: State) -> Tensor:
        """Fill `.grad` of encoder and decoders, which is empty; the weights (T,) of the tasks in the encoder's.

        Where processes share the batch, `.grad` is to hold this process's part: the trainer adds them up. What is
        made of whole gradients is whole already and counts `distributed.once`.

        Args:
            step: Losses, and whose gradients are wanted.
            state: Read and changed.
        """

    def after(self, step: SharedStep, state: State) -> None:  # noqa: B027  # most methods have nothing to do
        """What is to be done when the optimiser has moved the parameters."""

    def _positive(self, *options: str, zero: bool = False) -> None:
        """Refuse options that are no finite numbers above 0 (or, if told, at 0)."""
        for option in options:
            value: Any = getattr(self, option)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not zero):
                least = "0 or more" if zero else "above 0"
                raise SimoError(f"the {option} of {self.name} must be a number, {least}; got {value!r}")


class LossWeighting(Weighting):
    """A weighting of the losses themselves: one backward pass of Σ w_t L_t, w constant in it.

    The decoder of task t sees w_t times the gradient of its own loss.
    """

    @abstractmethod
    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """The weights w of this step, (T,) float64 on the CPU.

        Args:
            losses: The same losses as `step.losses`, (T,) float64 on the CPU, without graph.
            step: The step.
            state: Read and changed.
        """

    def backward(self, step: SharedStep, state: State) -> Tensor:
        """Gradients of Σ w_t L_t."""
        weights = self.weights(detached(step.losses), step, state)
        total = (weights.to(step.losses) * step.losses).sum()
        if step.extra is not None:
            total = total + step.extra
        total.backward()  # type: ignore[no-untyped-call]
        return weights


def detached(losses: Tensor) -> Tensor:
    """Losses as plain numbers: float64, on the CPU, without graph."""
    return losses.detach().to("cpu", torch.float64)


def reciprocal(losses: Tensor) -> Tensor:
    """1 / L, and 0 for a loss of 0: a task without a label in the batch has nothing to say."""
    return torch.where(losses > 0, 1 / losses.clamp_min(torch.finfo(losses.dtype).tiny), 0.0)
