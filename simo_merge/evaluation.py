"""Evaluation: a model on a data set, against the experts, as a result row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.metrics import delta_eq2, delta_ratio, find_protocol
from simo_merge.models import MergeRecord, MultiTaskModel, SingleTaskModel
from simo_merge.results import ResultRow
from simo_merge.scoring import BATCH_SIZE, Scores, score
from simo_merge.tasks import Task


def expert_scores(
    experts: Sequence[SingleTaskModel],
    dataset: DenseDataset,
    precision: str = "float32",
    protocol: str = "pooled",
    batch_size: int = BATCH_SIZE,
) -> Scores:
    """Every expert's metrics on its own task: the baseline of delta."""
    scores: Scores = {}
    for expert in experts:
        label = f"evaluating expert: {expert.task.name}"
        scores |= score(expert, dataset, batch_size, precision, label, protocol)
    return scores


def deltas(
    tasks: Mapping[str, Task], scores: Scores, baseline: Scores, protocol: str = "pooled"
) -> tuple[float, float]:
    """Both forms of delta in percent, on each task's primary metric: (ratio form, equation-2 form).

    NaN when a primary metric could not be measured. Source: literature cited at `metrics.delta_ratio`.

    Raises:
        SimoError: a task without its expert, or scores that lack the protocol's primary metric.
    """
    names = list(scores)
    missing = [name for name in names if name not in baseline]
    if missing:
        raise SimoError(f"no expert's score for {', '.join(missing)}; delta compares every task with its expert")
    ours = {name: _primary(tasks[name], scores[name], protocol) for name in names}
    theirs = {name: _primary(tasks[name], baseline[name], protocol) for name in names}
    if not all(math.isfinite(v) for v in (*ours.values(), *theirs.values())):
        return math.nan, math.nan
    better = {name: tasks[name].higher_is_better for name in names}
    return delta_ratio(ours, theirs, better), delta_eq2(ours, theirs, better)


def _primary(task: Task, scores: Mapping[str, float], protocol: str) -> float:
    primary = task.primary_under(protocol)
    if primary not in scores:
        raise SimoError(
            f"the scores of {task.name} are {', '.join(scores)}, but protocol {protocol} needs {primary}; "
            "measure the model and its experts under this protocol"
        )
    return scores[primary]


def result_row(
    method: str,
    dataset: DenseDataset,
    tasks: Mapping[str, Task],
    scores: Scores,
    baseline: Scores | None,
    seed: int,
    encoder_passes: float,
    labels: int = 0,
    images: int = 0,
    trainable_parameters: int = 0,
    fit_seconds: float = 0.0,
    protocol: str = "pooled",
    batch_size: int = BATCH_SIZE,
    options: Mapping[str, Any] | None = None,
) -> ResultRow:
    """A row of a results file; delta is NaN without a baseline.

    `protocol` and `batch_size` are those under which scores and baseline were measured.
    """
    recorded = find_protocol(protocol).label(batch_size)
    ratio, eq2 = (math.nan, math.nan) if baseline is None else deltas(tasks, scores, baseline, protocol)
    return ResultRow(
        method=method,
        data=dataset.name,
        split=dataset.split,
        protocol=recorded,
        tasks=tuple(scores),
        seed=seed,
        per_task=scores,
        delta_ratio=ratio,
        delta_eq2=eq2,
        labels=labels,
        images=images,
        encoder_passes=encoder_passes,
        trainable_parameters=trainable_parameters,
        fit_seconds=fit_seconds,
        evaluated=len(dataset),
        image_size=dataset[0].size,
        options=dict(options or {}),
    )


def method_name(model: MultiTaskModel) -> str:
    """What a multi-task model is called in results: its merge, then `+` its re-alignment."""
    if model.merge is None:
        return "multi-task"
    alignment = model.merge.alignment
    return model.merge.method + (f"+{alignment['method']}" if alignment else "")


def evaluate(
    model: MultiTaskModel | SingleTaskModel,
    dataset: DenseDataset,
    experts: Sequence[SingleTaskModel] | None = None,
    baseline: Scores | None = None,
    precision: str = "float32",
    seed: int = 0,
    scores: Scores | None = None,
    protocol: str = "pooled",
    batch_size: int = BATCH_SIZE,
) -> ResultRow:
    """Evaluate a model on a split; with experts (or their scores) the row has delta.

    Args:
        model: merged, aligned, or a single expert.
        dataset: a labelled split; only tasks that the model has are used.
        experts: the single-task models; they are evaluated as the baseline.
        baseline: their scores, where they are known already (`expert_scores`).
        precision: of the forward passes.
        seed: recorded in the row.
        scores: the model's own scores, where they are known already (`score_sharing_encoder`).
        protocol: one of `metrics.PROTOCOLS`; scores that are given must have been measured under it.
        batch_size: images at a time, for all models alike. Where the protocol depends on it the row says so:
            `mtan@8`.

    Raises:
        SimoError: no task in common, an empty split, a task without its expert, or an unknown protocol.
    """
    if scores is None:
        scores = score(model, dataset, batch_size, precision, protocol=protocol)
    if baseline is None and experts is not None:
        needed = [expert for expert in experts if expert.task.name in scores]
        baseline = expert_scores(needed, dataset, precision, protocol, batch_size)
    alignment: Mapping[str, Any] = {}
    merge = MergeRecord("")
    name = f"expert-{next(iter(model.tasks))}"
    if isinstance(model, MultiTaskModel):
        name = method_name(model)
        alignment = (model.merge.alignment if model.merge else None) or {}
        merge = model.merge or merge
    return result_row(
        name,
        dataset,
        model.tasks,
        scores,
        baseline,
        int(alignment.get("seed", seed)),
        model.encoder_passes,
        labels=max(int(alignment.get("labels", 0)), merge.labels),
        images=max(int(alignment.get("images", 0)), merge.images),
        trainable_parameters=int(alignment.get("trainable_parameters", 0)),
        fit_seconds=float(alignment.get("fit_seconds", 0.0)),
        protocol=protocol,
        batch_size=batch_size,
        options=merge.parameters,
    )


def experts_row(
    experts: Sequence[SingleTaskModel],
    dataset: DenseDataset,
    baseline: Scores,
    seed: int,
    labels: int,
    protocol: str = "pooled",
    batch_size: int = BATCH_SIZE,
) -> ResultRow:
    """The row of the experts themselves: delta 0, one encoder pass a task."""
    tasks = {expert.task.name: expert.task for expert in experts}
    return result_row(
        "experts",
        dataset,
        tasks,
        baseline,
        baseline,
        seed,
        encoder_passes=len(experts),
        labels=labels,
        trainable_parameters=sum(p.numel() for e in experts for p in e.parameters()),
        fit_seconds=sum(float(e.provenance.get("train_seconds", 0.0)) for e in experts),
        protocol=protocol,
        batch_size=batch_size,
    )
