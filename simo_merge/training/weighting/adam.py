"""Adam for the few numbers that a weighting learns, kept in its state so that a resumed run goes on exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from simo_merge.training.weighting.base import State

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def adam_step(state: State, name: str, gradient: Tensor, rate: float, decay: float = 0.0) -> None:
    """Move `state[name]` (T,) against its gradient by one step of Adam, with L2 decay.

    The moments and the number of steps are kept beside it, as `name.mean`, `name.square` and `name.steps`.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    values = state[name]
    gradient = gradient.to(values) + decay * values
    steps = state.get(f"{name}.steps", torch.zeros((), dtype=torch.float64)) + 1
    first = state.get(f"{name}.mean", torch.zeros_like(values))
    second = state.get(f"{name}.square", torch.zeros_like(values))
    first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
    second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
    unbiased = first / (1 - _BETAS[0] ** steps)
    deviation = (second / (1 - _BETAS[1] ** steps)).sqrt()
    state[name] = values - rate * unbiased / (deviation + _EPSILON)
    state |= {f"{name}.steps": steps, f"{name}.mean": first, f"{name}.square": second}
