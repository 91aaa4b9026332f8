"""Aligners after changes inside the encoder: each is fitted to what its task now reads."""

from __future__ import annotations

import copy

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel, fold_aligners
from simo_merge.realign import (
    Auto,
    EncoderCalibration,
    GradientSurgery,
    HeadDistillation,
    LinearSurgery,
    OnlineSurgery,
    Realignment,
    SurgeryV2,
    TaskNorms,
    capture_all,
    realign,
)
from simo_merge.realign.specific.each_task import join
from simo_merge.scoring import check_same_encoder
from tests.realign.specific.test_surgery_v2 import pixels
from tests.tiny import DEPTH, SEGMENTATION, TinyData, state_of


@pytest.fixture
def specific(merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData) -> MultiTaskModel:
    return realign(merged, experts, images, TaskNorms(from_block=2, held_out=None))


def written_out(model: MultiTaskModel, task: str) -> Encoder:
    """A copy of the encoder with a task's norms written into it."""
    encoder, changes = copy.deepcopy(model.encoder), model.changes(task)
    assert changes is not None
    for index in changes.indices:
        change = changes.change(index)
        assert change is not None
        for name in change.names:
            encoder.vit.get_submodule(f"blocks.{index}.{name}").load_state_dict(change.norm(name).state_dict())
    return encoder


@pytest.mark.parametrize(
    "method",
    [
        LinearSurgery(rank=4),
        LinearSurgery(rank="auto", ridge="auto", reads="auto"),
        Auto(budget=None),
        GradientSurgery(rank=4, epochs=1),
        HeadDistillation(steps=2, surgery=4),
    ],
    ids=str,
)
def test_an_aligner_after_it_is_that_of_an_encoder_with_the_tasks_blocks(
    specific: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    aligned = realign(specific, experts, images, method)
    for expert in experts:
        task = expert.task.name
        alone = MultiTaskModel(written_out(specific, task), {task: expert.decoder}, {task: expert.task})
        wanted = realign(alone, [expert], images, method)
        with torch.inference_mode():
            ours, theirs = aligned(pixels(images))[task], wanted(pixels(images))[task]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert state_of(aligned.encoder) == state_of(specific.encoder)
    assert aligned.encoder_passes == specific.encoder_passes == 1.5


def test_the_record_holds_both_and_distances_begin_where_the_blocks_left_off(
    specific: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(specific, experts, images, LinearSurgery(rank="auto", ridge="auto"))
    assert specific.merge is not None
    assert aligned.merge is not None
    first, record = dict(specific.merge.alignment or {}), dict(aligned.merge.alignment or {})
    assert record["method"] == "task-norms+surgery-stretched"
    assert record["before"] == first
    assert list(record["chosen"]) == list(record["distances"]) == list(aligned.tasks)
    fitted = sum(p.numel() for p in (*aligned.aligners.parameters(), *aligned.block_changes.parameters()))
    assert record["trainable_parameters"] == fitted
    for task, taps in record["distances"].items():
        for ours, theirs in zip(taps, first["distances"][task], strict=True):
            assert ours["before"] == pytest.approx(theirs["after"])
        assert taps[-1]["after"]["explained_variance"] > taps[-1]["before"]["explained_variance"]


def test_features_captured_before_serve_for_their_experts(
    specific: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(specific, {e.task.name: e for e in experts}, images)
    given, fresh = (realign(specific, experts, images, LinearSurgery(4), found) for found in (features, None))
    assert state_of(given) == state_of(fresh)


def test_a_second_change_inside_the_encoder_is_refused(
    specific: MultiTaskModel, merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    for method in (SurgeryV2(), EncoderCalibration(), TaskNorms()):
        with pytest.raises(SimoError, match="aligned already"):
            realign(specific, experts, images, method)
    specific.merge = None
    with pytest.raises(SimoError, match="aligned already"):
        realign(specific, experts, images, SurgeryV2())
    with pytest.raises(SimoError, match="differs from task to task"):
        OnlineSurgery(specific, experts, LinearSurgery(4))


def test_a_budget_for_all_tasks_is_shared_out() -> None:
    assert Auto(budget=0.3).for_one_of(3).budget == pytest.approx(0.1)
    assert Auto(budget=3000).for_one_of(3).budget == 1000
    assert Auto(budget=2).for_one_of(3).budget == 1
    assert Auto(budget=None).for_one_of(3) == Auto(budget=None)
    assert LinearSurgery().for_one_of(3) == LinearSurgery()


def test_what_the_fits_of_single_tasks_told_is_put_together() -> None:
    record = {"blocks": [1]}
    join(record, {"chosen": {"a": 1}, "rows": [1], "limit": 2})
    join(record, {"chosen": {"b": 2}, "rows": [2], "limit": 2})
    assert record == {"blocks": [1], "chosen": {"a": 1, "b": 2}, "rows": [1, 2], "limit": 2}


def test_results_say_what_it_costs_and_aligners_still_fold(
    specific: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(specific, experts, images, LinearSurgery(4))
    row = evaluate(aligned, TinyData(3, (SEGMENTATION, DEPTH)), experts)
    assert (row.method, row.encoder_passes) == ("task-arithmetic+task-norms+surgery-stretched", 1.5)
    assert type(row).from_json(row.to_json()) == row
    folded = fold_aligners(aligned)
    assert not folded.aligners
    with torch.inference_mode():
        ours, theirs = folded(pixels(images)), aligned(pixels(images))
    assert all(torch.allclose(ours[task], theirs[task], rtol=1e-3, atol=1e-3) for task in ours)


def test_models_of_other_blocks_are_not_scored_as_if_they_shared_an_encoder(
    specific: MultiTaskModel, merged: MultiTaskModel
) -> None:
    check_same_encoder(specific, copy.deepcopy(specific), "a copy")
    with pytest.raises(SimoError, match="the merge has another encoder"):
        check_same_encoder(specific, merged, "the merge")
