"""The re-alignment methods, as typed options with what each fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError, refuse_unknown_options
from simo_merge.models import Decoder, MultiTaskModel
from simo_merge.models.aligners import SurgeryTap
from simo_merge.realign.auto import Auto
from simo_merge.realign.closed_form import start_surgery
from simo_merge.realign.features import Features
from simo_merge.realign.full_affine import FullAffine
from simo_merge.realign.gradient import fit_tap
from simo_merge.realign.gradient_surgery import GradientSurgery
from simo_merge.realign.head_methods import HeadDistillation, HeadRealignment
from simo_merge.realign.inside.calibration import EncoderCalibration
from simo_merge.realign.inside.distillation import EncoderDistillation
from simo_merge.realign.inside.tuning import EncoderAdapters, EncoderNorms
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.magnitude import Magnitude
from simo_merge.realign.orthogonal import Procrustes
from simo_merge.realign.realignment import (
    Calibration,
    Realignment,
    TapwiseRealignment,
    check_rank,
    count,
    feature_moments,
    fit_each_tap,
    new_aligner,
)
from simo_merge.realign.recalibration import batch_norms, fit_affine, reestimate_batch_norm
from simo_merge.realign.spatial import Spatial
from simo_merge.realign.specific.surgery_v2 import GradientSurgeryV2, SurgeryV2
from simo_merge.realign.specific.task_norms import TaskNorms
from simo_merge.realign.token_linear import TokenLinear


@dataclass(frozen=True)
class Surgery(Realignment):
    """Representation surgery as published: Z - W_up ReLU(W_down Z), Adam on the L1 distance to the expert.

    rank, steps, batch_size: as in the paper (rank 16, 16 images a step, 500 steps).
    start: "zero" (published: the module starts as the identity) or "closed-form" (starts at linear surgery).
    lr: of Adam; default: the paper's 1e-3 from zero; 3e-3 from the closed form, where it is relative to the size of
    the weights (much more, and what is gained on the calibration images is lost on others).
    ridge: of the closed form, when it starts there.

    Source: arXiv 2402.02705.
    """

    name: ClassVar[str] = "surgery"
    rank: int = 16
    steps: int = 500
    lr: float | None = None
    batch_size: int = 16
    start: str = "zero"
    ridge: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, self.ridge)
        if self.start not in ("zero", "closed-form"):
            raise SimoError(f"surgery starts at 'zero' or at 'closed-form', got {self.start!r}")
        if self.start == "closed-form" and self.rank < 2:
            raise SimoError("surgery that starts at the closed form needs a rank of 2 or more")
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-3 if self.start == "zero" else 3e-3)
        if self.steps < 0 or self.batch_size < 1 or not 0 < self.rate < math.inf:
            raise SimoError(
                f"steps must be 0 or more, batch_size 1 or more and lr positive; got {self.steps}, "
                f"{self.batch_size}, {self.lr}"
            )

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fit each tap and task on the cached features."""
        torch.manual_seed(given.seed)  # initial weights
        moments = feature_moments(given.features) if self.start == "closed-form" else []
        fitted = 0
        for task in model.tasks:
            aligner = new_aligner(model, "surgery", rank=self.rank)
            for index, tap_module in enumerate(aligner.taps):
                if moments:
                    start_surgery(moments[index], task, cast(SurgeryTap, tap_module), self.ridge)
                self._fit_tap(
                    tap_module.to(given.device),
                    given.features.merged,
                    given.features.experts[task],
                    index,
                    task,
                    given.seed,
                )
            model.aligners[task] = aligner
            fitted += count(aligner)
        return fitted

    @property
    def rate(self) -> float:
        """The learning rate, the default where none was given."""
        assert self.lr is not None
        return self.lr

    @property
    def label(self) -> str:
        """`surgery`, or `surgery-from-closed-form` where it starts there."""
        return self.name if self.start == "zero" else f"{self.name}-from-{self.start}"

    def _fit_tap(
        self, module: torch.nn.Module, merged: Features, expert: Features, tap: int, task: str, seed: int
    ) -> None:
        fit_tap(
            cast(SurgeryTap, module),
            merged.patches[tap],
            merged.prefix[tap],
            expert.patches[tap],
            expert.prefix[tap],
            self.steps,
            self.rate,
            self.batch_size,
            seed,
            f"surgery: {task}, tap {tap}",
            relative_lr=self.start == "closed-form",
        )


@dataclass(frozen=True)
class NormRecalibration(TapwiseRealignment):
    """Per-task normalization recalibration at the taps: each channel gets the expert's mean and deviation."""

    name: ClassVar[str] = "norm-recalibration"

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Match the moments of each tap and task."""
        return fit_each_tap(model, given, "affine", fit_affine)


@dataclass(frozen=True)
class BatchNormRecalibration(Realignment):
    """The running statistics of the decoders' batch norms, estimated anew on merged features.

    For `LinearDecoder` this is the whole of its normalization; a decoder without batch norm is refused.
    """

    name: ClassVar[str] = "batch-norm"

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse a decoder without batch norm."""
        for task, decoder in model.decoders.items():
            if not batch_norms(cast(Decoder, decoder)):
                raise SimoError(f"the decoder of {task} has no batch norm; use another re-alignment for it")

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Re-estimate each decoder's statistics."""
        merged = given.features.merged
        return sum(reestimate_batch_norm(cast(Decoder, decoder), merged) for decoder in model.decoders.values())


REALIGNMENTS: dict[str, type[Realignment]] = {
    m.name: m
    for m in (
        LinearSurgery,
        Auto,
        Surgery,
        NormRecalibration,
        Magnitude,
        Procrustes,
        FullAffine,
        TokenLinear,
        Spatial,
        GradientSurgery,
        BatchNormRecalibration,
        HeadRealignment,
        HeadDistillation,
        EncoderCalibration,
        EncoderAdapters,
        EncoderNorms,
        EncoderDistillation,
        SurgeryV2,
        GradientSurgeryV2,
        TaskNorms,
    )
}


def realignment(name: str, parameters: Mapping[str, Any] | None = None) -> Realignment:
    """The method of this name with these parameters.

    Raises:
        SimoError: an unknown name (the known ones are listed) or a parameter that the method does not have.
    """
    if name not in REALIGNMENTS:
        raise SimoError(f"unknown re-alignment {name!r}; known: {', '.join(sorted(REALIGNMENTS))}")
    kind, given = REALIGNMENTS[name], parameters or {}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # each is a dataclass
    refuse_unknown_options(name, given, known)
    try:
        return kind(**given)
    except TypeError as error:
        raise SimoError(f"re-alignment {name!r} does not take {dict(given)}: {error}") from error
