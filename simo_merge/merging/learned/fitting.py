"""Methods that learn the coefficients of the task vectors from images, by gradient descent."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.data.loading import Reader, load
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.merging.learned.coefficients import Coefficients, MergedEncoder, combine, parameters_of
from simo_merge.merging.learned.objectives import OBJECTIVES, Objective
from simo_merge.merging.method import DataMergeMethod, MergeData
from simo_merge.merging.options import above_zero, finite, one_of, whole
from simo_merge.merging.parameter import Parameter, Parameters
from simo_merge.progress import progress

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What was learned.

    coefficients: lambda. tasks: what its columns stand for. losses: of every step. thresholds: what the method had to
    know of all task vectors before.
    """

    coefficients: Coefficients
    tasks: tuple[str, ...]
    losses: tuple[float, ...]
    thresholds: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LearnedCoefficients(DataMergeMethod):
    """theta_0 + sum_t lambda_{g,t} tau_t, where lambda minimises an objective on images.

    g is the group of a parameter: all parameters, its layer, or itself. Every step reads one batch of images, which
    all tasks share, and makes one pass through the merged encoder and one back; what the experts make of the images
    is computed once before. Layers after the last tap reach no decoder: their coefficients stay as they began.

    objective: "features" (agreement with the experts' features at the taps, without labels), "predictions"
        (agreement with the experts' predictions through their decoders, without labels), "entropy" (of the
        predictions; segmentation alone) or "supervised" (the tasks' losses on labels).
    steps, lr, batch_size: of Adam; images are drawn in a fresh order an epoch.
    initial: where all coefficients start.

    Raises:
        SimoError: an unknown objective or an option out of its range.
    """

    objective: str = "features"
    steps: int = 100
    lr: float = 1e-2
    batch_size: int = 8
    initial: float = 0.3

    def __post_init__(self) -> None:
        one_of(self.name, "objective", self.objective, OBJECTIVES)
        object.__setattr__(self, "initial", finite(self.name, "initial", self.initial))
        object.__setattr__(self, "steps", whole(self.name, "steps", self.steps, least=1))
        object.__setattr__(self, "batch_size", whole(self.name, "batch_size", self.batch_size, least=1))
        object.__setattr__(self, "lr", above_zero(self.name, "lr", self.lr))

    @property
    def needs_labels(self) -> bool:
        """Whether the objective reads labels."""
        return OBJECTIVES[self.objective].needs_labels

    @property
    @abstractmethod
    def groups(self) -> str:
        """What shares a coefficient: a key of `GRANULARITIES`."""

    @property
    def decay(self) -> float:
        """Decoupled weight decay of the coefficients."""
        return 0.0

    @property
    def clamped(self) -> bool:
        """Whether coefficients are used clamped to 0..1."""
        return False

    def thresholds(self, parameters: Parameters) -> Tensor | None:
        """What `vectors` must know of all parameters together; nothing for plain task vectors."""
        return None

    def vectors(self, parameter: Parameter, thresholds: Tensor | None) -> Tensor:
        """What the coefficients weigh, (T, ...): the task vectors."""
        return parameter.vectors

    def observe(self, given: MergeData) -> Learned:
        """Learn the coefficients.

        Raises:
            SimoError: as the objective's `check`, images of different sizes, or a loss that is not finite.
        """
        kind = OBJECTIVES[self.objective]
        kind.check(given)
        plan = schedule(len(given.images), self.batch_size, self.steps, given.seed)
        objective = kind(given, sorted({index for indices in plan for index in indices}))
        states = [expert.encoder.vit.state_dict() for expert in given.experts]
        origin = given.base.vit.state_dict()
        thresholds = self.thresholds(lambda: parameters_of(origin, states))
        merged = MergedEncoder(
            given.experts[0].encoder,
            parameters_of(origin, states),
            self.groups,
            self.initial,
            given.device,
            self.clamped,
            lambda parameter: self.vectors(parameter, thresholds),
        )
        losses = descend(merged, objective, given.images, plan, self.lr, self.decay, given.precision, self.name)
        _LOG.info("%s: loss %.4g at first, %.4g at last", self.name, losses[0], losses[-1])
        tasks = tuple(expert.task.name for expert in given.experts)
        return Learned(merged.coefficients(), tasks, tuple(losses), thresholds)

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...); `statistics` is what `observe` returned."""
        assert isinstance(statistics, Learned)
        vectors = self.vectors(parameter, statistics.thresholds)
        return combine(parameter.base, vectors, statistics.coefficients.of(parameter))

    def record(self, statistics: Any) -> dict[str, Any]:
        """The options, the coefficients of every group in the order of `tasks`, the first and the last loss."""
        assert isinstance(statistics, Learned)
        return {
            **self.parameters(),
            "tasks": list(statistics.tasks),
            "coefficients": statistics.coefficients.as_lists(),
            "losses": [statistics.losses[0], statistics.losses[-1]],
        }


def schedule(images: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The image indices of every step: a fresh permutation an epoch; batches run on across epochs."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, images)
    order: list[int] = []
    while len(order) < steps * size:
        order.extend(torch.randperm(images, generator=generator).tolist())
    return [order[i * size : (i + 1) * size] for i in range(steps)]


def descend(
    merged: MergedEncoder,
    objective: Objective,
    images: DenseDataset,
    plan: Sequence[Sequence[int]],
    lr: float,
    weight_decay: float,
    precision: str,
    label: str,
) -> list[float]:
    """Minimise the sum of the tasks' losses over the coefficients, with AdamW (Adam where there is no decay).

    Returns:
        The loss of every step, before it was made.

    Raises:
        SimoError: the loss or its gradient is not finite.
    """
    device = merged.raw.device
    optimizer = torch.optim.AdamW([merged.raw], lr=lr, weight_decay=weight_decay)
    losses: list[float] = []
    batches = progress(load(Reader(images), plan), len(plan), label, status=lambda: f"loss {losses[-1]:.4f}")
    for indices, batch in zip(plan, batches, strict=True):
        batch = batch.to(device)
        with autocast(device, precision):
            loss = objective.losses(merged(batch.images), indices, batch).sum()
        (gradient,) = torch.autograd.grad(loss, merged.raw)
        losses.append(float(loss.detach()))
        if not (math.isfinite(losses[-1]) and torch.isfinite(gradient).all()):
            raise SimoError(f"the loss of {label} became {losses[-1]} at step {len(losses)}; lower lr or use float32")
        merged.raw.grad = gradient
        optimizer.step()
    return losses
