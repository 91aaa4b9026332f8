"""What every expert's decoder is worth on another encoder, with labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.metrics.delta import gain_ratio
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.scoring import score
from simo_merge.tasks import Task
from simo_merge.weights import Base

State = Mapping[str, Tensor]


class Decoders:
    """One encoder, whose weights are replaced, and the decoders of all experts.

    experts: where the decoders come from; copies are made. labelled: what the primary metrics are measured on.
    """

    def __init__(
        self,
        experts: Sequence[SingleTaskModel],
        labelled: DenseDataset,
        device: torch.device,
        precision: str = "float32",
        batch_size: int = 16,
    ) -> None:
        tasks = {expert.task.name: expert.task for expert in experts}
        decoders = {expert.task.name: copy.deepcopy(expert.decoder) for expert in experts}
        self.model = MultiTaskModel(copy.deepcopy(experts[0].encoder), decoders, tasks).to(device).eval()
        self.labelled, self._precision, self._batch = labelled, precision, batch_size

    def scores(self, state: State, label: str) -> Tensor:
        """The primary metric of every decoder on an encoder with these weights, (T,); NaN for tasks without labels."""
        self.model.encoder.vit.load_state_dict(state)
        found = score(self.model, self.labelled, self._batch, self._precision, label)
        tasks = self.model.tasks.values()
        values = [found[t.name][t.primary] if t.name in found else math.nan for t in tasks]
        return torch.tensor(values, dtype=torch.float64)


def transfer_scores(decoders: Decoders, experts: Sequence[SingleTaskModel], base: Base) -> tuple[Tensor, Tensor]:
    """The metric of every decoder on the base's encoder, (T,), and on every expert's, (T, T) by [encoder, decoder]."""
    at_base = decoders.scores(base.vit.state_dict(), "transfer: base")
    rows = [decoders.scores(e.encoder.vit.state_dict(), f"transfer: {e.task.name}") for e in experts]
    return at_base, torch.stack(rows)


def directions(tasks: Sequence[Task]) -> tuple[bool, ...]:
    """Whether higher is better, for each task's primary metric."""
    return tuple(task.higher_is_better for task in tasks)


def relative_gain(metrics: Tensor, baseline: Tensor, higher_is_better: Sequence[bool]) -> Tensor:
    """`gain_ratio` of metrics (..., T) to the baseline (T,), in percent; NaN where it has no meaning."""
    found = torch.full_like(metrics, math.nan)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in metrics.shape)).reshape(-1, metrics.ndim).tolist():
        task = place[-1]
        value, own = float(metrics[tuple(place)]), float(baseline[task])
        if math.isfinite(value) and math.isfinite(own) and own > 0 and (value > 0 or higher_is_better[task]):
            found[tuple(place)] = gain_ratio(value, own, higher_is_better[task])
    return found
