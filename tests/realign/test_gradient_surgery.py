"""Tuning from the closed form: it goes on while held-out images speak for it, and not longer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import ALIGNER_OBJECTIVES, GradientSurgery, LinearSurgery, capture_all, realign
from simo_merge.realign.gradient_surgery import fitted_task
from simo_merge.realign.realignment import Calibration
from tests.tiny import DEPTH, SEGMENTATION, LastTapDecoder, TinyData, state_of, tiny_base, tiny_expert


def record(model: MultiTaskModel) -> dict[str, Any]:
    assert model.merge is not None
    return dict((model.merge.alignment or {})["tuning"])


@pytest.mark.parametrize("objective", sorted(ALIGNER_OBJECTIVES))
def test_the_epochs_kept_are_those_with_the_least_held_out_objective(
    merged: MultiTaskModel, experts: list[SingleTaskModel], objective: str
) -> None:
    images = TinyData(10, tuple(merged.tasks.values()))
    aligned = realign(merged, experts, images, GradientSurgery(objective, rank=4, epochs=4, patience=2, lr=1e-2))
    for told in record(aligned).values():
        history = told["held_out"]
        assert told["taken"] == len(history) - 1 <= 4
        assert history[told["kept"]] == min(history)
        assert told["taken"] == 4 or told["taken"] - told["kept"] == 2


@pytest.mark.parametrize("reads", ["own", "all"])
def test_prediction_agreement_on_the_calibration_images_improves_on_the_closed_form(
    merged: MultiTaskModel, experts: list[SingleTaskModel], reads: str
) -> None:
    images = TinyData(12)
    method = GradientSurgery(rank=4, ridge=0.01, reads=reads, epochs=6, lr=1e-2)  # type: ignore[arg-type]
    tuned = realign(merged, experts, images, method)
    closed = realign(merged, experts, images, LinearSurgery(4, 0.01, reads, stretch="none"))  # type: ignore[arg-type]
    given = Calibration(capture_all(merged, {e.task.name: e for e in experts}, images), images, torch.device("cpu"))
    for task, told in record(tuned).items():
        assert told["kept"] > 0
        fitted = fitted_task(copy.deepcopy(merged), task, given)
        ours, before = (
            float(ALIGNER_OBJECTIVES["predictions"](fitted, model.aligners[task], torch.arange(12)))  # type: ignore[arg-type]
            for model in (tuned, closed)
        )
        assert ours < before


def test_the_held_out_objective_is_measured_on_the_last_images_which_the_start_has_not_seen(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(10)
    method = GradientSurgery("feature-l2", rank=4, ridge=0.01, epochs=1, held_out=0.3)
    found = record(realign(merged, experts, images, method))
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    part = copy.copy(images)
    part.samples, part.keys = images.samples[:7], images.keys[:7]
    start = realign(merged, experts, part, LinearSurgery(4, 0.01, stretch="none"), features.subset(slice(0, 7)))
    given = Calibration(features, images, torch.device("cpu"))
    for task, told in found.items():
        fitted = fitted_task(copy.deepcopy(merged), task, given)
        value = ALIGNER_OBJECTIVES["feature-l2"](fitted, start.aligners[task], torch.arange(7, 10))  # type: ignore[arg-type]
        assert told["held_out"][0] == pytest.approx(float(value), rel=1e-3)


def test_where_tuning_does_harm_the_closed_form_of_all_images_is_kept(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    tuned = realign(merged, experts, images, GradientSurgery(rank=4, ridge=0.01, lr=1e3, patience=1))
    closed = realign(merged, experts, images, LinearSurgery(4, 0.01, stretch="none"))
    assert all(told["kept"] == 0 and told["taken"] == 1 for told in record(tuned).values())
    assert state_of(tuned) == state_of(closed)


def test_one_image_gets_the_closed_form(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    tuned = realign(merged, experts, TinyData(1), GradientSurgery(rank=4, ridge=0.01))
    assert state_of(tuned) == state_of(realign(merged, experts, TinyData(1), LinearSurgery(4, 0.01, stretch="none")))


def test_the_decoders_stay_as_they_are_and_gather_no_gradient(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    tuned = realign(merged, experts, images, GradientSurgery(rank=4, epochs=2))
    assert state_of(tuned.decoders) == state_of(merged.decoders)
    assert all(p.grad is None and p.requires_grad for p in tuned.decoders.parameters())


@pytest.mark.parametrize("objective", ["predictions", "supervised"])
def test_a_decoder_may_leave_tokens_and_taps_unread(objective: str) -> None:
    base = tiny_base()
    experts = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    for expert in experts:
        expert.decoder = LastTapDecoder(48, expert.task.out_channels)
    merged = merge(experts, TaskArithmetic(0.3), base)
    tuned = realign(merged, experts, TinyData(6, (SEGMENTATION, DEPTH)), GradientSurgery(objective, rank=4, epochs=2))
    assert all(torch.isfinite(v).all() for v in tuned.state_dict().values())


def test_an_objective_that_is_not_finite_is_never_kept(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    tuned = realign(merged, experts, images, GradientSurgery(rank=4, lr=1e30, patience=1))
    assert all(torch.isfinite(v).all() for v in tuned.state_dict().values())
    assert all(math.isfinite(told["held_out"][0]) for told in record(tuned).values())


def test_supervision_without_labels_is_refused_and_counted_where_there_are_some(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    method = GradientSurgery("supervised", rank=4, epochs=1)
    with pytest.raises(SimoError, match=r"needs labels for segmentation, and tiny \(val\) has depth"):
        realign(merged, experts, TinyData(3, (DEPTH,)), method)
    aligned = realign(merged, experts, labelled, method)
    assert aligned.merge is not None
    assert (aligned.merge.alignment or {})["labels"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "hinge"}, "unknown objective 'hinge'"),
        ({"rank": "auto"}, "not 'auto'"),
        ({"rank": 0}, "rank of surgery must be 1 or more"),
        ({"held_out": 1.0}, "between 0 and 1, got 1"),
        ({"epochs": 0}, "epochs, patience and batch_size must be 1 or more"),
        ({"lr": 0.0}, "lr positive"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        GradientSurgery(**options)
