"""Choosing the scaling coefficient of task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from simo_merge.data import DenseDataset
from simo_merge.merging import TaskArithmetic
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import Features
from simo_merge.selection.candidates import MethodSelection
from simo_merge.selection.criteria import Agreement, ValidationDelta
from simo_merge.selection.select import select
from simo_merge.weights import Base

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Coefficients tried by default: the paper's grid where it matters for three and more tasks."""


@dataclass(frozen=True)
class Selection:
    """The chosen coefficient and the score of every candidate (higher is better).

    images, labels: how many images it was chosen by, and how many of them with labels.
    """

    scale: float
    scores: dict[float, float]
    criterion: str
    images: int = 0
    labels: int = 0

    def recorded_in(self, model: MultiTaskModel) -> MultiTaskModel:
        """The model, whose record now says what its coefficient was chosen by."""
        if model.merge is not None:
            model.merge = replace(model.merge, images=self.images, labels=self.labels)
        return model


def select_by_validation(
    experts: Sequence[SingleTaskModel],
    validation: DenseDataset,
    scales: Sequence[float] = SCALES,
    base: Base | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    resample_pos_embed: bool = False,
) -> Selection:
    """The coefficient of task arithmetic with the best delta (ratio form) on a labelled validation split.

    Raises:
        SimoError: as `select`.
    """
    criterion = ValidationDelta(validation)
    found = select(
        experts, TaskArithmetic(), {"scale": scales}, criterion, base, None, device, precision, 0, resample_pos_embed
    )
    return _of_scales(found, len(validation), len(validation))


def select_by_agreement(
    experts: Sequence[SingleTaskModel],
    images: DenseDataset,
    scales: Sequence[float] = SCALES,
    base: Base | None = None,
    device: str | torch.device | None = None,
    rank: int | None = None,
    expert_features: dict[str, Features] | None = None,
    precision: str = "float32",
    resample_pos_embed: bool = False,
) -> Selection:
    """The coefficient of task arithmetic whose features agree best with the experts', without labels.

    rank: of closed-form surgery, after which `Agreement` is then taken. expert_features: captured before.

    Raises:
        SimoError: as `select`.
    """
    criterion = Agreement(images, rank, expert_features)
    found = select(
        experts, TaskArithmetic(), {"scale": scales}, criterion, base, None, device, precision, 0, resample_pos_embed
    )
    return _of_scales(found, len(images), 0)


def _of_scales(found: MethodSelection, images: int, labels: int) -> Selection:
    scores = {candidate.options["scale"]: candidate.score for candidate in found.candidates}
    return Selection(found.options["scale"], scores, found.criterion, images, labels)
