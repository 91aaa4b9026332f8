"""Head re-alignment as methods: taught by labels, or by the experts' own predictions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, cast

from simo_merge.device import AUTO, PRECISIONS
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Decoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign.features import refuse_share
from simo_merge.realign.heads import distilled_loss, fit_head, label_loss
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.realignment import Calibration, Realignment


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
    merged ones; how far it is off is `tasks.agreement.prediction_distance`.

    steps, lr, batch_size, precision: as in `HeadRealignment`.
    surgery: the rank of closed-form surgery that is fitted first, and behind which the decoder is trained; None: none.
    """

    name: ClassVar[str] = "head-distilled"
    steps: int = 200
    lr: float = 5e-4
    batch_size: int = 8
    precision: str = AUTO
    surgery: int | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.lr, self.batch_size, self.precision)
        if self.surgery is not None:
            LinearSurgery(self.surgery)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fine-tune each decoder on the captured features and the expert's predictions."""
        refuse_share(given.features)
        fitted = 0 if self.surgery is None else LinearSurgery(self.surgery).fit(model, given)
        for name, task in model.tasks.items():
            decoder = cast(Decoder, model.decoders[name]).to(given.device)
            teacher = SingleTaskModel(model.encoder, copy.deepcopy(decoder).eval(), task)
            aligner = cast(Aligner, model.aligners[name]).to(given.device) if self.surgery is not None else None
            fit_head(
                decoder,
                model.encoder,
                task,
                given.features.merged,
                distilled_loss(teacher, given.features.experts[name], given.device, self.precision),
                self.steps,
                self.lr,
                self.batch_size,
                self.precision,
                given.seed,
                aligner,
            )
            fitted += sum(p.numel() for p in decoder.parameters())
        return fitted


def _check(steps: int, lr: float, batch_size: int, precision: str) -> None:
    if steps < 1 or batch_size < 1 or lr <= 0 or precision not in (AUTO, *PRECISIONS):
        raise SimoError(
            f"steps and batch_size must be 1 or more, lr positive and precision one of {(AUTO, *PRECISIONS)}; got "
            f"{steps}, {batch_size}, {lr}, {precision!r}"
        )
