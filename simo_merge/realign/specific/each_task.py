"""Fitting and measuring task by task, where every task reads an encoder of its own kind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from simo_merge.models import Decoder, MultiTaskModel
from simo_merge.realign.distances import alignment_distances
from simo_merge.realign.features import CalibrationFeatures, Features, capture
from simo_merge.realign.on_disk import OnDisk
from simo_merge.realign.realignment import Calibration, Realignment

Distances = dict[str, list[dict[str, Any]]]


def one_task(model: MultiTaskModel, task: str) -> MultiTaskModel:
    """The model as one task sees it: one encoder, as this task runs it. Weights are the model's own, not copies."""
    decoder = cast(Decoder, model.decoders[task])
    return MultiTaskModel(model.encoder_of(task), {task: decoder}, {task: model.tasks[task]}, base=model.base)


def fit_each_task(
    method: Realignment, model: MultiTaskModel, given: Calibration, keep: OnDisk | None = None
) -> tuple[int, float, Distances]:
    """Fit aligners or decoders to each task's own features; of those captured before, the experts' alone are read.

    keep: where files hold each task's features, instead of memory.

    Returns:
        How many parameters were fitted, the seconds that it took (capture apart), and the distances to the experts at
        every tap before and after, where there are aligners.
    """
    fitted, seconds, distances = 0, 0.0, Distances()
    each = method.for_one_of(len(model.tasks))
    for task in model.tasks:
        view = one_task(model, task)
        ours = _captured(view, given, keep)
        features = CalibrationFeatures(ours, {task: given.features.experts[task]})
        experts = {task: given.experts[task]}
        own = Calibration(features, given.images, given.device, given.seed, experts=experts, precision=given.precision)
        began = time.perf_counter()
        fitted += each.fit(view, own)
        seconds += time.perf_counter() - began
        view.cpu()
        model.decoders[task] = view.decoders[task]
        if task in view.aligners:
            model.aligners[task] = view.aligners[task]
            distances |= alignment_distances(view, features)
        join(given.record, own.record)
    return fitted, seconds, distances


def distances_of_each_task(model: MultiTaskModel, given: Calibration, keep: OnDisk | None = None) -> Distances:
    """How far each task's features are from its expert's, before and after the tasks' changes inside the encoder."""
    found, features = Distances(), given.features
    for task in model.tasks:
        view = one_task(model, task)
        changed = _captured(view, given, keep) if model.changes(task) is not None else None
        found |= alignment_distances(
            view, CalibrationFeatures(features.merged, {task: features.experts[task]}), changed
        )
    return found


def join(record: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add what a fit told of one task: tables by task are merged, lists go on, and of single values the last stands."""
    for name, value in more.items():
        before = record.get(name)
        if isinstance(before, dict) and isinstance(value, Mapping):
            record[name] = {**before, **value}
        elif isinstance(before, list) and isinstance(value, list):
            record[name] = before + value
        else:
            record[name] = value


def _captured(view: MultiTaskModel, given: Calibration, keep: OnDisk | None) -> Features:
    label = f"features: {next(iter(view.tasks))}, merged"
    encoder = view.encoder.to(given.device)
    found = capture(encoder, given.images, precision=given.precision, label=label, keep=keep)
    view.encoder.cpu()
    return found
