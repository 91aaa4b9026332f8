"""Dynamic weight average: tasks whose loss falls more slowly weigh more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, reciprocal


@dataclass(frozen=True)
class Dwa(LossWeighting):
    """Dynamic weight average: w = T softmax(r / temperature), r_t = L_t(k-1) / L_t(k-2), L(k) the mean over epoch k.

    In the first two epochs all weights are 1.

    temperature: the higher, the more equal the weights.

    Source: Liu et al. (MTAN), arXiv 1803.10704, equation 7, where the temperature is 2.
    """

    name: ClassVar[str] = "dwa"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        self._positive("temperature")

    def initial(self, tasks: int) -> State:
        """No epoch seen."""
        zeros = torch.zeros(tasks, dtype=torch.float64)
        return {"sum": zeros, "last": zeros, "before": zeros, "epochs": torch.zeros(1, dtype=torch.float64)}

    def weights(self, losses: Tensor, step: SharedStep, state: State) -> Tensor:
        """T softmax(r / temperature), (T,); it takes up this step's losses."""
        if step.number and step.number % step.epoch_steps == 0:
            mean = state["sum"] / step.epoch_steps
            state |= {"before": state["last"], "last": mean, "sum": torch.zeros_like(losses)}
            state["epochs"] = state["epochs"] + 1
        state["sum"] = state["sum"] + losses
        if state["epochs"] < 2:
            return torch.ones_like(losses)
        speed = state["last"] * reciprocal(state["before"])
        return len(losses) * torch.softmax(speed / self.temperature, dim=0)
