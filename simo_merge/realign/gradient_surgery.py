"""Linear surgery tuned by gradient descent from its closed form, stopped by held-out images."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Decoder, MultiTaskModel, SingleTaskModel
from simo_merge.progress import progress
from simo_merge.realign.closed_form import error_scales
from simo_merge.realign.features import refuse_share
from simo_merge.realign.gradient import relative_rates
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.objectives import NEED_LABELS, Fitted, Objective, aligner_objective
from simo_merge.realign.realignment import Calibration, Realignment, count, fitted_images, short

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradientSurgery(Realignment):
    """Z + W_up W_down Z + b for each task and tap, tuned by Adam from the closed form on an objective by name.

    The last images are held out (neighbours are often of one scene, so they stay together). From the closed form of
    the others, all taps of a task are tuned together, and after every epoch the objective is measured on what is held
    out; it ends when `patience` epochs have brought nothing better. The aligner that is returned starts at the closed
    form of all images and takes as many epochs as were best: none, if the closed form was. The record tells, for
    each task, the epochs taken and kept, and the held-out objective after each. From one image nothing can be held
    out: it gets the closed form.

    objective: "feature-l1" (as published), "feature-l2" (as the closed form), "cosine-smooth-l1", "predictions" (of
    the frozen decoder, from aligned and from the expert's features) or "supervised" (labels); see `objectives`.
    rank, ridge, reads: as in `LinearSurgery`.
    epochs: at most. patience: epochs without improvement. held_out: share of the images, the last.
    lr: of Adam, relative to the root mean square of each weight. batch_size: images a step.
    """

    name: ClassVar[str] = "surgery-gradient"
    objective: str = "predictions"
    rank: int | None = 64
    ridge: float = 0.03
    reads: Literal["own", "all"] = "own"
    epochs: int = 20
    patience: int = 3
    held_out: float = 0.2
    lr: float = 1e-3
    batch_size: int = 8

    def __post_init__(self) -> None:
        aligner_objective(self.objective)
        if "auto" in (self.rank, self.ridge, self.reads):
            raise SimoError("gradient surgery takes a rank, a ridge and the taps to read as they are, not 'auto'")
        super().__post_init__()
        self._start()
        fitted_images(1, self.held_out)
        if min(self.epochs, self.patience, self.batch_size) < 1 or not 0 < self.lr < math.inf:
            raise SimoError(
                "epochs, patience and batch_size must be 1 or more and lr positive; "
                f"got {self.epochs}, {self.patience}, {self.batch_size}, {self.lr}"
            )

    @property
    def needs_labels(self) -> bool:
        """Whether the objective reads labels."""
        return self.objective in NEED_LABELS

    def _start(self) -> LinearSurgery:
        return LinearSurgery(self.rank, self.ridge, self.reads, stretch="none")

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Choose the number of epochs for each task, then tune on all images."""
        refuse_share(given.features)
        images = len(given.features.merged)
        used = fitted_images(images, self.held_out)
        objective, start = aligner_objective(self.objective), self._start()
        kept: dict[str, int] = {}
        if used:
            part = given.features.subset(slice(0, used))
            start.fit(model, Calibration(part, given.images, given.device, given.seed))
            told = {}
            for task in model.tasks:
                history = self._search(fitted_task(model, task, given), model, task, objective, used, given.seed)
                kept[task] = min(range(len(history)), key=history.__getitem__)
                told[task] = {"taken": len(history) - 1, "kept": kept[task], "held_out": [short(v) for v in history]}
            given.record.update(tuning=told)
        else:
            _LOG.warning("one calibration image leaves none to hold out: the closed form is left as it is")
        fitted = start.fit(model, given)
        for task, epochs in kept.items():
            if epochs:
                aligner = cast(Aligner, model.aligners[task])
                self._tune(fitted_task(model, task, given), aligner, objective, images, epochs, given.seed)
        assert fitted == sum(count(cast(Aligner, aligner)) for aligner in model.aligners.values())
        return fitted

    def _search(
        self, given: Fitted, model: MultiTaskModel, task: str, objective: Objective, used: int, seed: int
    ) -> list[float]:
        """The held-out objective before tuning and after each epoch, until it stops getting better."""
        held = torch.arange(used, len(given.merged))
        history: list[float] = []

        def go_on(aligner: Aligner) -> bool:
            history.append(self._measure(given, aligner, objective, held))
            best = min(range(len(history)), key=history.__getitem__)
            return len(history) - 1 - best < self.patience

        aligner = cast(Aligner, copy.deepcopy(model.aligners[task])).to(given.device)
        if go_on(aligner):
            self._tune(given, aligner, objective, used, self.epochs, seed, go_on)
        return history

    def _measure(self, given: Fitted, aligner: Aligner, objective: Objective, index: Tensor) -> float:
        with torch.no_grad():
            parts = [(float(objective(given, aligner, i)), len(i)) for i in torch.split(index, self.batch_size)]
        found = sum(value * size for value, size in parts) / len(index)
        return found if found == found else float("inf")

    def _tune(
        self,
        given: Fitted,
        aligner: Aligner,
        objective: Objective,
        images: int,
        epochs: int,
        seed: int,
        go_on: Callable[[Aligner], bool] | None = None,
    ) -> None:
        """Adam on the first images, a whole number of epochs, or until `go_on(aligner)` says no after one."""
        aligner.to(given.device)
        parameters = [p for p in aligner.parameters() if p.numel()]
        optimizer = torch.optim.Adam(relative_rates(parameters, self.lr))
        generator = torch.Generator().manual_seed(seed)
        for _ in progress(range(epochs), epochs, f"{self.objective}: {given.head.task.name}"):
            for index in torch.split(torch.randperm(images, generator=generator), self.batch_size):
                # Of the aligner alone: the decoder is frozen, and its weights shall gather no gradient. It may leave
                # tokens or whole taps unread.
                gradients = torch.autograd.grad(
                    objective(given, aligner, index), parameters, allow_unused=True, materialize_grads=True
                )
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            if go_on is not None and not go_on(aligner):
                return


def fitted_task(model: MultiTaskModel, task: str, given: Calibration) -> Fitted:
    """What an objective may ask of one task; the decoder is moved to the device, and predicts as it will."""
    decoder = cast(Decoder, model.decoders[task]).to(given.device).eval()
    merged, expert = given.features.merged, given.features.experts[task]
    scales = [scale.to(given.device) for scale in error_scales(expert)]
    head = SingleTaskModel(model.encoder, decoder, model.tasks[task])
    return Fitted(head, merged, expert, scales, given.images, given.device)
