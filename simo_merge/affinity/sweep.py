"""Affinity from labels: every expert's decoder along every expert's task vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_merge.affinity.inputs import check_labelled, prepared
from simo_merge.affinity.transfer import Decoders, directions, relative_gain, transfer_scores
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, merge_states
from simo_merge.models import SingleTaskModel
from simo_merge.scoring import BATCH_SIZE
from simo_merge.weights import Base

LAMBDAS = tuple(round(0.1 * i, 1) for i in range(16))
"""0 to 1.5 in steps of 0.1, the paper's 16 points."""


@dataclass(frozen=True, eq=False)
class LambdaSweep:
    """Every decoder on base + lambda * tau_s, for every expert s and lambda.

    tasks: T names. lambdas: L values, rising. metrics: (T, L, T), [s, l, t] the primary metric of decoder t along task
    vector s. experts, base: (T,), that of each expert on its own task, and of its decoder on the base's encoder.
    names: of the metrics; higher_is_better: their directions. data, split, images: what they were measured on.

    Raises:
        SimoError: metrics of another shape.

    Source: arXiv 2504.11268, section 6.4 and figures 3, 5 and 6.
    """

    tasks: tuple[str, ...]
    lambdas: tuple[float, ...]
    metrics: Tensor
    experts: Tensor
    base: Tensor
    names: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    data: str = ""
    split: str = ""
    images: int = 0

    def __post_init__(self) -> None:
        shape = (len(self.tasks), len(self.lambdas), len(self.tasks))
        if tuple(self.metrics.shape) != shape:
            raise SimoError(f"the metrics of a sweep have shape {tuple(self.metrics.shape)}, expected {shape}")

    @property
    def delta(self) -> Tensor:
        """(T, L, T): percent by which each metric is better than its expert's (`metrics.delta.gain_ratio`)."""
        return relative_gain(self.metrics, self.experts, self.higher_is_better)

    @property
    def normalised(self) -> Tensor:
        """(T, L, T): metric over the expert's (its inverse for errors), what the paper draws; 1 is the expert."""
        return 1 + self.delta / 100

    def at(self, source: str, lam: float, target: str) -> float:
        """The metric of decoder `target` on base + lam * task vector of `source`.

        Raises:
            SimoError: a task or a lambda that was not measured.
        """
        if source not in self.tasks or target not in self.tasks or lam not in self.lambdas:
            raise SimoError(
                f"the sweep has no {source}, {lam}, {target}; it has tasks {', '.join(self.tasks)} at {self.lambdas}"
            )
        place = self.tasks.index(source), self.lambdas.index(lam), self.tasks.index(target)
        return float(self.metrics[place])

    def best_gain(self) -> Tensor:
        """(T, T): how many percentage points of delta task vector s brings decoder t at best, over the base.

        max over lambda of delta[s, lambda, t] - delta of the base; 0 where no step along s helps t.
        """
        start = relative_gain(self.base, self.experts, self.higher_is_better)
        gains = self.delta - start
        best = gains.nan_to_num(-math.inf).amax(dim=1).clamp_min(0)
        return torch.where(gains.isnan().all(dim=1), math.nan, best)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN as null."""
        tensors = {key: plain(getattr(self, key)) for key in ("metrics", "experts", "base", "delta")}
        rest = {key: getattr(self, key) for key in ("data", "split", "images")}
        lists = {key: list(getattr(self, key)) for key in ("tasks", "lambdas", "names", "higher_is_better")}
        return lists | rest | tensors

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LambdaSweep:
        """The sweep that `to_json` wrote.

        Raises:
            SimoError: a field that is missing or of another form.
        """
        try:
            return cls(
                tasks=tuple(record["tasks"]),
                lambdas=tuple(record["lambdas"]),
                metrics=_tensor(record["metrics"]),
                experts=_tensor(record["experts"]),
                base=_tensor(record["base"]),
                names=tuple(record["names"]),
                higher_is_better=tuple(record["higher_is_better"]),
                data=record["data"],
                split=record["split"],
                images=record["images"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SimoError(f"this is no lambda sweep: {type(error).__name__} {error}") from error


def lambda_sweep(
    experts: Sequence[SingleTaskModel],
    base: Base | None = None,
    labelled: DenseDataset | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    device: str | torch.device | None = None,
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    resample_pos_embed: bool = False,
) -> LambdaSweep:
    """Every expert's decoder on base + lambda * tau_s, for every expert s and lambda: the paper's curves.

    It takes T (L - 2) + T + 1 passes over the labelled images, where 0 and 1 are among the L lambdas.

    Args:
        experts: T single-task models of one base; they are not changed.
        base: their base; default: found again from what their checkpoints record.
        labelled: images with labels for one task or more, not of the test split.
        lambdas: how far to go along each task vector.
        device: where to compute; default: the GPU if there is one.
        precision: of the forward passes.
        batch_size: images at a time.
        resample_pos_embed: as in `merge`.

    Raises:
        SimoError: as `affinity`; no lambda, one twice, or one that is not finite.

    Source: arXiv 2504.11268, section 6.4 and figures 3, 5 and 6.
    """
    base, models = prepared(experts, base, resample_pos_embed)
    if labelled is None:
        raise SimoError("a lambda sweep measures scores; give it labelled images (labelled=...)")
    check_labelled(labelled, models)
    decoders = Decoders(models, labelled, resolve_device(device), precision, batch_size)
    return swept(models, base, lambdas, decoders)


def swept(
    experts: Sequence[SingleTaskModel],
    base: Base,
    lambdas: Sequence[float],
    decoders: Decoders,
    ends: tuple[Tensor, Tensor] | None = None,
) -> LambdaSweep:
    """Measure every expert's decoder on base + lambda * tau_s: T (L - 2) + T + 1 passes over the labelled images.

    Args:
        experts: T experts of one base and grid.
        base: their base.
        lambdas: L values; 0 and 1 cost no further pass.
        decoders: those of the experts, with what they are measured on.
        ends: what `transfer_scores` gave, where it is known.

    Raises:
        SimoError: no lambda, one twice, or one that is not finite; or as `scoring.score`.
    """
    grid = tuple(sorted(float(lam) for lam in lambdas))
    if not grid or len(set(grid)) < len(grid) or not all(math.isfinite(lam) for lam in grid):
        raise SimoError(f"lambdas are {list(lambdas)}; expected one finite value or more, each once")
    at_base, at_experts = ends or transfer_scores(decoders, experts, base)
    start, count = base.vit.state_dict(), len(experts)
    metrics = torch.empty(count, len(grid), count, dtype=torch.float64)
    for s, expert in enumerate(experts):
        end = expert.encoder.vit.state_dict()
        for index, lam in enumerate(grid):
            if lam in (0.0, 1.0):
                metrics[s, index] = at_experts[s] if lam else at_base
                continue
            state = merge_states(start, [end], TaskArithmetic(lam)).shared
            metrics[s, index] = decoders.scores(state, f"sweep: {expert.task.name} at {lam:g}")
    tasks = [expert.task for expert in experts]
    return LambdaSweep(
        tasks=tuple(task.name for task in tasks),
        lambdas=grid,
        metrics=metrics,
        experts=at_experts.diagonal().clone(),
        base=at_base,
        names=tuple(task.primary for task in tasks),
        higher_is_better=directions(tasks),
        data=decoders.labelled.name,
        split=decoders.labelled.split,
        images=len(decoders.labelled),
    )


def plain(values: Tensor) -> Any:
    """Nested lists, NaN as None."""
    if values.ndim:
        return [plain(part) for part in values]
    return None if values.isnan() else float(values)


def _tensor(values: Any) -> Tensor:
    def numbers(part: Any) -> Any:
        if isinstance(part, list):
            return [numbers(each) for each in part]
        return math.nan if part is None else float(part)

    return torch.tensor(numbers(values), dtype=torch.float64)
