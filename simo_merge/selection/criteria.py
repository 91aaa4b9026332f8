"""What the candidates of a merge are scored by."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.evaluation import deltas, expert_scores
from simo_merge.merging.from_images.layer_inputs import on_device
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import Calibration, CalibrationFeatures, Features, LinearSurgery, capture, tap_distances
from simo_merge.scoring import Scores, scorable_tasks, score
from simo_merge.selection.remembered import Remembered

Scorer = Callable[[MultiTaskModel, str], float]
"""Scores a merged model; the text is what its progress is called."""


class Criterion(ABC):
    """A score for merged models; higher is better."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What the score is, for people."""

    @property
    @abstractmethod
    def datasets(self) -> tuple[DenseDataset, ...]:
        """The images that it looks at."""

    @property
    def settings(self) -> dict[str, str]:
        """What else the score depends on, beside label and images."""
        return {}

    @abstractmethod
    def prepare(self, experts: Sequence[SingleTaskModel], device: torch.device, precision: str) -> Scorer:
        """Compute what all candidates share, once, and return the score as a function of the model.

        Raises:
            SimoError: data that the score cannot be measured on.
        """


@dataclass(frozen=True)
class ValidationDelta(Criterion):
    """Delta against the experts (ratio form, in percent) on a labelled validation split.

    With `rank`, it is that of the merged model after closed-form surgery of that rank, fitted to calibration images:
    the best merge before alignment is not the best after it.

    validation: labels for one or more of the tasks. protocol: one of `metrics.PROTOCOLS`. rank, calibration: of the
    surgery, and images to fit it to; their labels are not read.

    Raises:
        SimoError: a rank without calibration images, or these without a rank.
    """

    validation: DenseDataset
    protocol: str = "pooled"
    rank: int | None = None
    calibration: DenseDataset | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.calibration is None):
            raise SimoError("delta after surgery takes both a rank and calibration images; give both, or neither")

    @property
    def label(self) -> str:
        """Delta, on which split, before or after surgery."""
        return f"delta on {self.validation.name} ({self.validation.split}){_after(self.rank)}"

    @property
    def datasets(self) -> tuple[DenseDataset, ...]:
        """The validation split, and calibration images where there are any."""
        return (self.validation,) if self.calibration is None else (self.validation, self.calibration)

    @property
    def settings(self) -> dict[str, str]:
        """The protocol."""
        return {"protocol": self.protocol}

    def prepare(self, experts: Sequence[SingleTaskModel], device: torch.device, precision: str) -> Scorer:
        """Evaluate the experts, and capture their features of the calibration images."""
        data = Remembered(self.validation)
        scorable_tasks({expert.task.name: expert.task for expert in experts}, data)
        baseline: Scores = {}
        for expert in experts:
            if expert.task.name in data.tasks:
                moved = copy.deepcopy(expert).to(device)  # the caller's stays where it is, in its mode
                baseline |= expert_scores([moved], data, precision, self.protocol)
        calibration = None if self.calibration is None else Remembered(self.calibration)
        pictures = None if calibration is None else _Pictures.of(experts, calibration, device, precision)

        def delta(model: MultiTaskModel, label: str) -> float:
            if pictures is not None and self.rank is not None:
                model = pictures.aligned(model, pictures.features(model, label), self.rank)
            scores = score(model.to(device), data, precision=precision, label=label, protocol=self.protocol)
            return deltas(model.tasks, scores, baseline, self.protocol)[0]

        return delta


@dataclass(frozen=True)
class Agreement(Criterion):
    """Agreement with the experts' features at the taps, without labels.

    The mean over tasks and taps of the explained variance of the experts' patch features: 1 - sum of squared errors /
    sum of squared deviations from the channel means. With `rank`, it is taken after closed-form surgery of that rank,
    fitted to even and scored on odd images, because the best merge before alignment is not the best after it.

    images: calibration images. expert_features: the experts' features of them, where they were captured before.

    Raises:
        SimoError: fewer than two images with a rank.
    """

    images: DenseDataset
    rank: int | None = None
    expert_features: Mapping[str, Features] | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and len(self.images) < 2:
            raise SimoError("choosing by agreement after alignment takes two calibration images or more")

    @property
    def label(self) -> str:
        """Agreement, before or after surgery."""
        return f"agreement with the experts' features{_after(self.rank)}"

    @property
    def datasets(self) -> tuple[DenseDataset, ...]:
        """The calibration images."""
        return (self.images,)

    def prepare(self, experts: Sequence[SingleTaskModel], device: torch.device, precision: str) -> Scorer:
        """Capture the experts' features."""
        pictures = _Pictures.of(experts, Remembered(self.images), device, precision, self.expert_features)

        def agreement(model: MultiTaskModel, label: str) -> float:
            if model.task_encoders and self.rank is None:
                return pictures.own_agreement(model, label)
            pair = pictures.features(model, label)
            if self.rank is None:
                return explained(model, pair)
            fitted, held_out = pair.subset(slice(0, None, 2)), pair.subset(slice(1, None, 2))
            return explained(pictures.aligned(model, fitted, self.rank), held_out)

        return agreement


def explained(model: MultiTaskModel, features: CalibrationFeatures) -> float:
    """Mean explained variance of the experts' patch features over tasks and taps, after the model's aligners."""
    values = [
        distance.explained_variance
        for task, expert in features.experts.items()
        for distance in tap_distances(features.merged, expert, model.encoder.taps, model.aligner(task))
    ]
    return sum(values) / len(values)


def _after(rank: int | None) -> str:
    return "" if rank is None else f" after rank {rank} surgery"


@dataclass(frozen=True)
class _Pictures:
    """Calibration images with what the experts make of them, and how merged encoders look at them.

    data: the images. device, precision: of forward passes. experts: task -> the expert's features.
    """

    data: DenseDataset
    device: torch.device
    precision: str
    experts: Mapping[str, Features]

    @classmethod
    def of(
        cls,
        experts: Sequence[SingleTaskModel],
        data: DenseDataset,
        device: torch.device,
        precision: str,
        known: Mapping[str, Features] | None = None,
    ) -> _Pictures:
        """Capture the experts' features; those that are known already are taken as they are."""
        found = dict(known or {})
        for expert in experts:
            if expert.task.name not in found:
                encoder = on_device(expert.encoder, device)
                label = f"features: {expert.task.name}"
                found[expert.task.name] = capture(encoder, data, precision=precision, label=label)
        return cls(data, device, precision, found)

    def features(self, model: MultiTaskModel, label: str) -> CalibrationFeatures:
        """The merged encoder's features beside the experts'.

        Raises:
            SimoError: every task has an encoder of its own.
        """
        if model.task_encoders:
            raise SimoError(
                "this merge gives every task an encoder of its own, so there are no shared features to re-align; "
                "choose without a rank"
            )
        merged = self._captured(model.encoder, label)
        model.to("cpu")
        return CalibrationFeatures(merged, self.experts)

    def aligned(self, model: MultiTaskModel, fitted: CalibrationFeatures, rank: int) -> MultiTaskModel:
        """A copy of the model with aligners: the model itself is merged into again."""
        aligned = copy.deepcopy(model)
        LinearSurgery(rank, stretch="none").fit(aligned, Calibration(fitted, self.data, torch.device("cpu")))
        return aligned

    def own_agreement(self, model: MultiTaskModel, label: str) -> float:
        """Explained variance where every task has an encoder of its own."""
        values = []
        for task, encoder in model.task_encoders.items():
            merged = self._captured(cast(Encoder, encoder), f"{label}: {task}")
            values.append(explained(model, CalibrationFeatures(merged, {task: self.experts[task]})))
        return sum(values) / len(values)

    def _captured(self, encoder: Encoder, label: str) -> Features:
        return capture(encoder.to(self.device), self.data, precision=self.precision, label=label)
