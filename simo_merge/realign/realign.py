"""Re-alignment: a merged model in, the same model with fitted aligners (or decoders) out."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign.distances import alignment_distances
from simo_merge.realign.features import (
    CalibrationFeatures,
    Features,
    capture,
    capture_all,
    mark,
    refuse_missing,
    refuse_no_room,
)
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.moments import summing_device
from simo_merge.realign.on_disk import DiskError, OnDisk
from simo_merge.realign.realignment import CAPTURE, Calibration, Realignment
from simo_merge.realign.record import IN_ENCODER, inside, record_after, record_before
from simo_merge.realign.running import MomentsWanted, RunningMoments
from simo_merge.realign.specific.each_task import distances_of_each_task, fit_each_task
from simo_merge.realign.streaming import moment_distances, stream_moments

_LOG = logging.getLogger(__name__)


def realign(
    model: MultiTaskModel,
    experts: Sequence[SingleTaskModel] | Mapping[str, SingleTaskModel],
    images: DenseDataset,
    method: Realignment | None = None,
    features: CalibrationFeatures | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    keep: OnDisk | None = None,
    stream: bool = False,
    precision: str = "float32",
) -> MultiTaskModel:
    """Fit a re-alignment of a merged model to its experts.

    Where a launcher started several processes, all of them make this call; they share the images, and all get the
    model.

    Args:
        model: the merged model; it is not changed.
        experts: the single-task models that were merged.
        images: calibration images; their labels are used only where the method needs labels.
        method: default: `LinearSurgery()`, which needs no labels and no learning rate.
        features: features of these images captured before (`capture_all`), to share them between methods.
        device: where to capture and fit; default: the GPU if there is one. Changes inside the encoder are fitted on the
            CPU where that cannot compute float64.
        seed: of initial weights and the order of images.
        keep: where files hold the features that are captured, instead of memory (see `capture`).
        stream: add each batch to the moments of the taps and keep no features, for methods that are fitted to moments
            alone (`Realignment.from_moments`); the distances in the record are then those of `moment_distances`.
        precision: of the passes that capture or stream features: float32, bfloat16 or auto, the faster one on the
            device. Where `features` are given, say what they were captured in: an encoder that has changed is
            captured in it again.

    Returns:
        A new model, on the CPU; `merge.alignment` records method, images, labels, fitted parameters, the
        seconds that fitting took (capture apart), what the method tells of its choices and, where there are
        aligners, the distances to the experts at every tap before and after, on the calibration images.

    Raises:
        SimoError: no images, a task without its expert, NaN in features, a model that is aligned already
            or has an encoder for every task, a method that needs labels which the images do not have, features of
            other images or of another encoder, or a stream for a method that needs features.
    """
    method = method or LinearSurgery()
    before = record_before(model, method)
    if model.task_encoders:
        raise SimoError(
            "this merge gives every task an encoder of its own, so there are no shared features to re-align; "
            "re-align a merge with one encoder"
        )
    by_task = dict(experts) if isinstance(experts, Mapping) else {e.task.name: e for e in experts}
    method.check(model, images)
    own = [model.encoder_of(task) for task in model.block_changes]
    where = resolve_device(device)
    precision = resolve_precision(precision, where)
    moments: RunningMoments | None = None
    if stream:
        wanted = _streamed(model, method, features, keep)
        with _on(where, model, by_task):
            moments = stream_moments(model, by_task, images, wanted, where, precision=precision)
    elif features is None:
        with _on(where, model, by_task):
            features = capture_all(model, by_task, images, precision=precision, keep=keep, also=own)
    else:
        _check_features(features, model, by_task, images)
        if own or inside(method):  # they run the experts again
            refuse_missing(model, by_task)
        if own and keep is not None:
            refuse_no_room(own, images, keep, precision=precision)
    aligned = copy.deepcopy(model).cpu()
    fitted_on = summing_device(where) if inside(method) else where
    calibration = Calibration(features, images, fitted_on, seed, experts=by_task, streamed=moments, precision=precision)
    if aligned.block_changes:
        fitted, seconds, distances = fit_each_task(method, aligned, calibration, keep)
    else:
        began = time.perf_counter()
        fitted = method.fit(aligned, calibration)
        seconds = time.perf_counter() - began
        aligned = aligned.cpu()
        distances = _distances_or_none(aligned, method, calibration, keep)
    aligned = aligned.cpu()
    if aligned.merge is not None:
        alignment = {
            "method": method.label,
            **_resolved(method.parameters(), fitted_on),
            "images": len(images),
            "labels": len(images) if method.needs_labels else 0,
            "trainable_parameters": fitted,
            "fit_seconds": round(seconds, 4),
            "seed": seed,
            **calibration.record,
        }
        if inside(method):
            alignment[IN_ENCODER] = True
        if moments is not None:
            alignment["streamed"] = True
        if precision != "float32":
            alignment["captured_in"] = precision
        if distances:
            alignment["distances"] = distances
        aligned.merge = replace(aligned.merge, alignment=record_after(before, alignment))
    return aligned.eval()


def _resolved(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The options with the precision that was meant, where a method trains in one."""
    if "precision" not in options:
        return options
    return options | {"precision": resolve_precision(options["precision"], device)}


@contextmanager
def _on(device: torch.device, model: MultiTaskModel, experts: Mapping[str, SingleTaskModel]) -> Iterator[None]:
    """Model and experts on a device, and behind it where they were."""
    before = [(each, next(each.parameters()).device) for each in (model, *experts.values())]
    for each, _ in before:
        each.to(device)
    try:
        yield
    finally:
        for each, place in before:
            each.to(place)


def _streamed(
    model: MultiTaskModel, method: Realignment, features: CalibrationFeatures | None, keep: OnDisk | None
) -> MomentsWanted:
    """The moments that are to be streamed.

    Raises:
        SimoError: features are needed, or were given, or are to be kept, or every task has features of its own.
    """
    if model.block_changes:
        raise SimoError(
            f"the encoder of this model differs from task to task, so no one stream of features serves all; {CAPTURE}"
        )
    if features is not None or keep is not None:
        raise SimoError(
            "a stream keeps no features and reads none; leave out features and keep (--capture-dir), or the stream"
        )
    wanted = method.from_moments()
    if wanted is None:
        raise SimoError(f"{method.label}, with these options, is fitted to features and cannot be streamed; {CAPTURE}")
    return wanted


def _distances_or_none(
    model: MultiTaskModel, method: Realignment, given: Calibration, keep: OnDisk | None
) -> dict[str, list[dict[str, Any]]]:
    """The distances; none where the disk refuses the features that they are of: what was fitted is not lost for it."""
    try:
        return _distances(model, method, given, keep)
    except DiskError as error:
        _LOG.warning("the record has no distances to the experts: %s", error)
        return {}


def _distances(
    model: MultiTaskModel, method: Realignment, given: Calibration, keep: OnDisk | None
) -> dict[str, list[dict[str, Any]]]:
    """The distances to the experts before and after; none where only decoders were changed."""
    if given.streamed is not None:
        return moment_distances(model, given.streamed.folded()) if len(model.aligners) else {}
    if method.task_specific:
        return distances_of_each_task(model, given, keep)
    changed = _captured_again(model, given, keep) if method.changes_encoder else None
    if not len(model.aligners) and changed is None:
        return {}
    return alignment_distances(model, given.features, changed, given.device)


def _captured_again(model: MultiTaskModel, given: Calibration, keep: OnDisk | None) -> Features:
    encoder = model.encoder.to(given.device)
    features = capture(encoder, given.images, precision=given.precision, label="features: calibrated", keep=keep)
    model.to("cpu")
    return features


def _check_features(
    features: CalibrationFeatures,
    model: MultiTaskModel,
    experts: Mapping[str, SingleTaskModel],
    images: DenseDataset,
) -> None:
    missing = [name for name in model.tasks if name not in features.experts]
    if missing:
        raise SimoError(f"the features given have none of the experts for {', '.join(missing)}; capture them too")
    for whose, found in {"the merged encoder": features.merged, **features.experts}.items():
        if found.keys != tuple(images.keys):
            raise SimoError(
                f"the features of {whose} were captured from other images ({len(found)}) than {images.name} "
                f"({images.split}, {len(images)}); capture them from these, in this order"
            )
    if features.merged.encoder and features.merged.encoder != mark(model.encoder):
        raise SimoError(
            "the merged features given are those of another encoder; capture them from this model's, and again after a "
            "re-alignment inside the encoder"
        )
    for name in model.tasks:
        known = features.experts[name].encoder
        if known and name in experts and known != mark(experts[name].encoder):
            raise SimoError(
                f"the expert features given for {name} are those of another encoder than its expert's; capture them "
                "from the experts that are given"
            )
