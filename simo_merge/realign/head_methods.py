"""Head re-alignment as methods: taught by labels, or by the experts' own predictions."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from simo_merge.device import AUTO, PRECISIONS
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Decoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign.features import refuse_share
from simo_merge.realign.heads import distilled_loss, fit_head, head_error, label_loss
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.realignment import Calibration, Realignment, fitted_images, short

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadRealignment(Realignment):
    """Fine-tune the decoders, with labels, on the frozen merged encoder: the SIMO paper's first fix.

    steps, lr, batch_size: of one-cycle AdamW. precision: of the decoder's forward pass; "auto"
    is the faster one on the device.

    Source: arXiv 2504.11268.
    """

    name: ClassVar[str] = "head"
    steps: int = 200
    lr: float = 5e-4
    batch_size: int = 8
    precision: str = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.steps, self.lr, self.batch_size, self.precision)

    @property
    def needs_labels(self) -> bool:
        """It does."""
        return True

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fine-tune each decoder on the captured features and the labels."""
        fitted = 0
        for name, task in model.tasks.items():
            decoder = cast(Decoder, model.decoders[name]).to(given.device)
            fit_head(
                decoder,
                model.encoder,
                task,
                given.features.merged,
                label_loss(task, given.images, given.device),
                self.steps,
                self.lr,
                self.batch_size,
                self.precision,
                given.seed,
            )
            fitted += sum(p.numel() for p in decoder.parameters())
        return fitted


@dataclass(frozen=True)
class HeadDistillation(Realignment):
    """Fine-tune the decoders on the frozen merged encoder, with the experts' predictions in place of labels.

    What the expert predicts for a calibration image, from its own features, is what the decoder is to predict from the
    merged ones; how far off it is: `tasks.agreement.prediction_distance`. The last images are held out: a decoder that
    training does not bring nearer to the expert on them stays as it was. The record tells the distances before and
    after, and which decoders were kept. From one image nothing can be held out, and no decoder is changed.

    steps, lr, batch_size, precision: as in `HeadRealignment`.
    surgery: the rank of closed-form surgery, not stretched, that is fitted first, and behind which the decoder is
    trained; None: none.
    held_out: share of the images, the last.
    """

    name: ClassVar[str] = "head-distilled"
    steps: int = 200
    lr: float = 5e-4
    batch_size: int = 8
    precision: str = AUTO
    surgery: int | None = None
    held_out: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.steps, self.lr, self.batch_size, self.precision)
        if self.surgery is not None:
            LinearSurgery(self.surgery, stretch="none")
        fitted_images(1, self.held_out)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fine-tune each decoder on the captured features and the expert's predictions."""
        refuse_share(given.features)
        fitted = 0 if self.surgery is None else LinearSurgery(self.surgery, stretch="none").fit(model, given)
        if not fitted_images(len(given.features.merged), self.held_out):
            _LOG.warning("one calibration image leaves none to hold out: the decoders are left as they are")
            return fitted
        told: dict[str, Any] = {}
        for name in model.tasks:
            before, decoder, after = self._distil(model, name, given)
            told[name] = {"before": short(before), "after": short(after), "kept": after < before}
            if after < before:
                model.decoders[name] = decoder
                fitted += sum(p.numel() for p in decoder.parameters())
        given.record.update(distilled=told)
        return fitted

    def _distil(self, model: MultiTaskModel, name: str, given: Calibration) -> tuple[float, Decoder, float]:
        """A decoder taught by the first images; how far on the held-out ones the old one and the new one are off."""
        task, features = model.tasks[name], given.features.merged
        decoder = cast(Decoder, model.decoders[name]).to(given.device).eval()
        teacher = SingleTaskModel(model.encoder, copy.deepcopy(decoder), task)
        aligner = cast(Aligner, model.aligners[name]).to(given.device) if self.surgery is not None else None
        used = fitted_images(len(features), self.held_out)
        held = torch.arange(used, len(features))
        student, expert = copy.deepcopy(decoder), given.features.experts[name]
        fit_head(
            student,
            model.encoder,
            task,
            features.subset(slice(0, used)),
            distilled_loss(teacher, expert, given.device, self.precision),
            self.steps,
            self.lr,
            self.batch_size,
            self.precision,
            given.seed,
            aligner,
        )
        judge = distilled_loss(teacher, expert, given.device, "float32")
        before, after = (
            head_error(d, model.encoder, task, features, judge, held, self.batch_size, aligner)
            for d in (decoder, student)
        )
        return before, student, after


def _check(steps: int, lr: float, batch_size: int, precision: str) -> None:
    if steps < 1 or batch_size < 1 or not 0 < lr < math.inf or precision not in (AUTO, *PRECISIONS):
        raise SimoError(
            f"steps and batch_size must be 1 or more, lr positive and precision one of {(AUTO, *PRECISIONS)}; got "
            f"{steps}, {batch_size}, {lr}, {precision!r}"
        )
