"""Choosing the scaling coefficient of task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from simo_merge.data import DenseDataset
from simo_merge.merging import TaskArithmetic
from simo_merge.models import SingleTaskModel
from simo_merge.realign import Features
from simo_merge.selection.candidates import MethodSelection
from simo_merge.selection.criteria import Agreement, ValidationDelta
from simo_merge.selection.select import select
from simo_merge.weights import Base

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Coefficients tried by default: the paper's grid where it matters for three and more tasks."""


@dataclass(frozen=True)
class Selection:
    """The chosen coefficient and the score of every candidate (higher is better)."""

    scale: float
    scores: dict[float, float]
    criterion: str


def select_by_validation(
    experts: Sequence[SingleTaskModel],
    validation: DenseDataset,
    scales: Sequence[float] = SCALES,
    base: Base | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> Selection:
    """The coefficient of task arithmetic with the best delta (ratio form) on a labelled validation split.

    Raises:
        SimoError: as `select`.
    """
    criterion = ValidationDelta(validation)
    return _of_scales(select(experts, TaskArithmetic(), {"scale": scales}, criterion, base, None, device, precision))


def select_by_agreement(
    experts: Sequence[SingleTaskModel],
    images: DenseDataset,
    scales: Sequence[float] = SCALES,
    base: Base | None = None,
    device: str | torch.device | None = None,
    rank: int | None = None,
    expert_features: dict[str, Features] | None = None,
    precision: str = "float32",
) -> Selection:
    """The coefficient of task arithmetic whose features agree best with the experts', without labels.

    rank: of closed-form surgery, after which `Agreement` is then taken. expert_features: captured before.

    Raises:
        SimoError: as `select`.
    """
    criterion = Agreement(images, rank, expert_features)
    return _of_scales(select(experts, TaskArithmetic(), {"scale": scales}, criterion, base, None, device, precision))


def _of_scales(found: MethodSelection) -> Selection:
    scores = {candidate.options["scale"]: candidate.score for candidate in found.candidates}
    return Selection(found.options["scale"], scores, found.criterion)
