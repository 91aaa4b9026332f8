"""Closed-form surgery on a stream of images: moments are added as they come, aligners solved again every few images."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from simo_merge.device import resolve_device, resolve_precision
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import DIRECTIONS
from simo_merge.realign.candidates import LINEAR, Candidate
from simo_merge.realign.chosen import fitted_aligner
from simo_merge.realign.features import refuse_missing
from simo_merge.realign.folds import Reads
from simo_merge.realign.linear import AUTO, LinearSurgery
from simo_merge.realign.realignment import count
from simo_merge.realign.record import record_after, record_before
from simo_merge.realign.running import MomentsWanted, RunningMoments, encode
from simo_merge.realign.stretch import covariance


class OnlineSurgery:
    """Linear surgery that learns from every image once, in the order in which they come, and keeps none.

    Each batch costs one pass through the merged encoder and one through every expert; what it says is added to the
    moments of every tap (float64 sums, `moments.Moments`), so that after n images the aligners are those that
    `LinearSurgery` fits to the same n images at once, up to rounding. Images may differ in size from batch to batch.

    Args:
        model: the merged model; it is not changed.
        experts: the single-task models that were merged; their encoders are moved to the device.
        method: rank, ridge and taps that are read, none of them "auto": there is nothing to choose by.
        every: images after which the aligners are solved again.
        device: where to run encoders; default: the GPU if there is one.
        precision: of the encoders' passes.

    Raises:
        SimoError: a task without its expert, a model that is aligned already (inside an encoder that all tasks share it
            may be) or has an encoder for every task, an option that is "auto", an objective that reads features, or
            `every` below 1.

    Source: the online setting of arXiv 2402.02705 (batches of one image, each seen once), in closed form.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        experts: Sequence[SingleTaskModel] | Mapping[str, SingleTaskModel],
        method: LinearSurgery | None = None,
        every: int = 64,
        device: str | torch.device | None = None,
        precision: str = "float32",
    ) -> None:
        self.method, self.every, self.precision = method or LinearSurgery(), every, precision
        by_task = dict(experts) if isinstance(experts, Mapping) else {e.task.name: e for e in experts}
        _check(model, by_task, self.method, every)
        self.device = resolve_device(device)
        self.images = 0
        self._fitted_to = 0
        self._before = record_before(model, self.method)
        wanted = MomentsWanted(joint=self.reads == "all", alone=self.method.stretch == DIRECTIONS)
        self._sums = RunningMoments(wanted, model.encoder.tap_channels)
        self._model = copy.deepcopy(model).to(self.device).eval()
        self._encoders = {task: by_task[task].encoder.to(self.device).eval() for task in model.tasks}

    @property
    def model(self) -> MultiTaskModel:
        """The merged model with the aligners of the last refresh; without any before the first."""
        return self._model

    @property
    def reads(self) -> Reads:
        """Which taps an aligner reads."""
        return "all" if self.method.reads == "all" else "own"

    def update(self, images: Tensor) -> bool:
        """Take up a batch of images (B, 3, H, W) in [0, 1]; whether the aligners were solved again.

        Raises:
            SimoError: images that the encoder cannot take, or NaN in the features; nothing of the batch is kept then.
        """
        merged = encode(self._model.encoder, images, self.device, self.precision, "the merged encoder")
        experts = {
            task: encode(encoder, images, self.device, self.precision, task) for task, encoder in self._encoders.items()
        }
        self._sums.add(merged, experts)
        self.images += len(images)
        due = self.images // self.every > self._fitted_to // self.every
        if due:
            self.refresh()
        return due

    def refresh(self) -> MultiTaskModel:
        """Solve the aligners from all images so far, and return the aligned model.

        Raises:
            SimoError: no image has come yet.
        """
        if self.images == 0:
            raise SimoError("no image has come yet, so there is nothing to fit to; call update first")
        began = time.perf_counter()
        moments = self._sums.folded()
        rank, ridge = self.method.rank, self.method.ridge
        assert not isinstance(rank, str)
        assert not isinstance(ridge, str)
        spreads = {cell: covariance(alone) for cell, alone in self._sums.alone.items()}
        fitted = 0
        for task in self._model.tasks:
            chosen = [
                Candidate(LINEAR, 0, float("nan"), self.reads, None if rank is None else min(rank, width), ridge)
                for width in moments.widths
            ]
            aligner = fitted_aligner(self._model, moments, task, chosen, None, self.method.stretch, spreads)
            assert aligner is not None
            self._model.aligners[task] = aligner.to(self.device).eval()
            fitted += count(aligner)
        self._fitted_to = self.images
        self._record(fitted, time.perf_counter() - began)
        return self._model

    def _record(self, fitted: int, seconds: float) -> None:
        if self._model.merge is None:
            return
        alignment = {
            "method": self.method.label,
            **self.method.parameters(),
            "images": self.images,
            "labels": 0,
            "trainable_parameters": fitted,
            "fit_seconds": round(seconds, 4),
            "online": {"every": self.every},
        }
        precision = resolve_precision(self.precision, self.device)
        if precision != "float32":
            alignment["captured_in"] = precision
        self._model.merge = replace(self._model.merge, alignment=record_after(self._before, alignment))


def _check(model: MultiTaskModel, experts: Mapping[str, SingleTaskModel], method: LinearSurgery, every: int) -> None:
    refuse_missing(model, experts)
    record_before(model, method)
    if model.block_changes:
        raise SimoError(
            "the encoder of this model differs from task to task, so no one stream of features serves all; use realign"
        )
    if model.task_encoders:
        raise SimoError(
            "this merge gives every task an encoder of its own, so there are no shared features to re-align"
        )
    chosen = [name for name in ("rank", "ridge", "reads") if getattr(method, name) == AUTO]
    if chosen:
        raise SimoError(
            f"online surgery cannot choose {', '.join(chosen)}: of a stream nothing is held out; give numbers, and "
            "'own' or 'all' taps to read"
        )
    if method.objective != "features":
        raise SimoError(
            f"online surgery keeps no features, and the objective {method.objective!r} reads them; take 'features', or "
            "capture the images and use realign"
        )
    if every < 1 or every != int(every):
        raise SimoError(f"the aligners are solved again every so many images, 1 or more; got {every!r}")
