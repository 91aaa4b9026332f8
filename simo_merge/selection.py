"""Choosing the scaling coefficient: on a validation split, or without labels."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.evaluation import deltas, expert_scores
from simo_merge.merging import TaskArithmetic, find_base, merge_states
from simo_merge.merging import merge as merge_experts
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import Calibration, CalibrationFeatures, Features, LinearSurgery, capture, tap_distances
from simo_merge.scoring import Scores, score
from simo_merge.weights import Base

_LOG = logging.getLogger(__name__)
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
        SimoError: no scales, or as `merging.merge` and `scoring.score`.
    """
    base = base or find_base(experts)
    where = resolve_device(device)
    model = merge_experts(experts, TaskArithmetic(_first(scales)), base).to(where)
    baseline: Scores = {}
    for expert in experts:
        baseline |= expert_scores([expert.to(where)], validation, precision)
        expert.to("cpu")
    states = [e.encoder.vit.state_dict() for e in experts]
    found: dict[float, float] = {}
    for scale in scales:
        model.encoder.vit.load_state_dict(merge_states(base.vit.state_dict(), states, TaskArithmetic(scale)).shared)
        scores = score(model, validation, precision=precision, label=f"coefficient {scale:g}")
        found[scale] = deltas(model.tasks, scores, baseline)[0]
    return _best(found, f"delta on {validation.name} ({validation.split})")


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
    """The coefficient whose features agree best with the experts', without labels.

    The score is the mean over tasks and taps of the explained variance of the experts' patch features. With
    `rank`, it is taken after closed-form surgery of that rank, fitted to even and scored on odd images, because
    the best coefficient before alignment is not the best after it; without, on the merged features as they are.

    Raises:
        SimoError: no scales, fewer than two images with `rank`, or as `merging.merge` and `realign.capture`.
    """
    if rank is not None and len(images) < 2:
        raise SimoError("choosing a coefficient after alignment takes two calibration images or more")
    base = base or find_base(experts)
    where = resolve_device(device)
    model = merge_experts(experts, TaskArithmetic(_first(scales)), base)
    if expert_features is None:
        expert_features = {}
        for expert in experts:
            expert_features[expert.task.name] = capture(
                expert.encoder.to(where), images, precision=precision, label=f"features: {expert.task.name}"
            )
            expert.to("cpu")
    states = [e.encoder.vit.state_dict() for e in experts]
    found: dict[float, float] = {}
    for scale in scales:
        model.encoder.vit.load_state_dict(merge_states(base.vit.state_dict(), states, TaskArithmetic(scale)).shared)
        merged = capture(model.encoder.to(where), images, precision=precision, label=f"coefficient {scale:g}")
        model.to("cpu")
        pair = CalibrationFeatures(merged, expert_features)
        found[scale] = _agreement(model, pair) if rank is None else _aligned_agreement(model, pair, images, rank)
    criterion = "agreement with the experts' features" + ("" if rank is None else f" after rank {rank} surgery")
    return _best(found, criterion)


def _agreement(model: MultiTaskModel, features: CalibrationFeatures) -> float:
    """Mean explained variance of the experts' patch features over tasks and taps."""
    values = [
        distance.explained_variance
        for task, expert in features.experts.items()
        for distance in tap_distances(
            features.merged,
            expert,
            model.encoder.taps,
            model.aligner(task),
        )
    ]
    return sum(values) / len(values)


def _aligned_agreement(model: MultiTaskModel, features: CalibrationFeatures, images: DenseDataset, rank: int) -> float:
    fitted, held_out = features.subset(slice(0, None, 2)), features.subset(slice(1, None, 2))
    aligned = copy.deepcopy(model)
    LinearSurgery(rank).fit(aligned, Calibration(fitted, images, torch.device("cpu")))
    return _agreement(aligned, held_out)


def _first(scales: Sequence[float]) -> float:
    if not scales:
        raise SimoError("no coefficients to choose from; give at least one")
    return scales[0]


def _best(found: dict[float, float], criterion: str) -> Selection:
    usable = {scale: value for scale, value in found.items() if math.isfinite(value)}
    if not usable:
        raise SimoError(f"no coefficient of {sorted(found)} gives a finite {criterion}")
    scale = max(usable, key=lambda candidate: usable[candidate])
    _LOG.info("coefficient %g chosen by %s: %s", scale, criterion, {k: round(v, 3) for k, v in found.items()})
    return Selection(scale, found, criterion)
