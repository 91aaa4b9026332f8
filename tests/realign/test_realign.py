"""Re-alignment as a whole: every method, what it leaves alone, what it records and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from simo_merge.device import resolve_device, resolve_precision
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import (
    REALIGNMENTS,
    Auto,
    BatchNormRecalibration,
    EncoderAdapters,
    EncoderCalibration,
    EncoderDistillation,
    EncoderNorms,
    FullAffine,
    GradientSurgery,
    GradientSurgeryV2,
    HeadDistillation,
    HeadRealignment,
    LinearSurgery,
    Magnitude,
    NormRecalibration,
    Procrustes,
    Realignment,
    Spatial,
    Surgery,
    SurgeryV2,
    TaskNorms,
    TokenLinear,
    capture_all,
    realign,
    realignment,
    tap_distances,
)
from tests.tiny import TinyData, Unreadable, state_of

METHODS: list[Realignment] = [
    LinearSurgery(rank=4),
    LinearSurgery(rank=4, objective="decoder"),
    LinearSurgery(rank=None, reads="all"),
    LinearSurgery(rank="auto", ridge="auto", reads="auto"),
    Auto(budget=None),
    Magnitude(),
    Procrustes(),
    FullAffine(),
    TokenLinear(rank=4),
    Spatial(rank=4, directions=2),
    Surgery(rank=4, steps=3),
    Surgery(rank=4, steps=3, start="closed-form"),
    NormRecalibration(),
    BatchNormRecalibration(),
    GradientSurgery(rank=4, epochs=1),
    GradientSurgery("supervised", rank=4, epochs=1),
    HeadRealignment(steps=2),
    HeadDistillation(steps=2),
    HeadDistillation(steps=2, surgery=4),
    EncoderCalibration(),
    EncoderAdapters(rank=2, epochs=2, prefix=0.0),
    EncoderNorms(epochs=2, prefix=0.0),
    EncoderDistillation(steps=3, lr=1e-5, prefix=0.0),
    SurgeryV2(rank=4),
    GradientSurgeryV2(rank=4, steps=10, lr=5e-3),
    TaskNorms(held_out=None),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def test_every_method_is_tried_here() -> None:
    assert {method.name for method in METHODS} == set(REALIGNMENTS)


@every_method
def test_the_model_and_the_experts_are_not_changed(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, method: Realignment
) -> None:
    before, record = state_of(merged, *experts), merged.merge
    aligned = realign(merged, experts, labelled, method)
    assert state_of(merged, *experts) == before
    assert merged.merge == record
    assert not merged.aligners
    if method.name != "head-distilled":  # it keeps the decoders where held-out images speak against new ones
        assert state_of(aligned) != state_of(merged)
    assert (state_of(aligned.encoder) == state_of(merged.encoder)) != method.changes_encoder


@every_method
def test_the_result_predicts_every_task_in_one_pass_or_shares_what_comes_before_the_tasks_own_blocks(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, method: Realignment
) -> None:
    aligned = realign(merged, experts, labelled, method)
    assert not any(module.training for module in aligned.modules())
    assert (aligned.encoder_passes == 1) != method.task_specific
    passes: list[int] = []
    aligned.encoder.vit.get_submodule("patch_embed").register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        predictions = aligned(torch.rand(2, 3, 32, 48))
    assert len(passes) == 1
    assert list(predictions) == list(merged.tasks)
    assert all(torch.isfinite(p).all() for p in predictions.values())


@every_method
def test_the_record_tells_method_options_and_cost(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, method: Realignment
) -> None:
    aligned = realign(merged, experts, labelled, method, seed=5)
    assert aligned.merge is not None
    assert merged.merge is not None
    assert (aligned.merge.method, aligned.merge.experts) == (merged.merge.method, merged.merge.experts)
    record = dict(aligned.merge.alignment or {})
    assert record.pop("fit_seconds") > 0
    fitted = record.pop("trainable_parameters")
    inside = method.changes_encoder or method.task_specific
    assert json.loads(json.dumps(record)) == record
    assert ("distances" in record) == (len(aligned.aligners) > 0 or inside)
    assert record.pop("in_encoder", False) == inside
    for own in (
        "distances",
        "chosen",
        "blocks",
        "epochs_held_out",
        "epochs_kept",
        "errors_held_out",
        "steps_kept",
        "tuning",
        "distilled",
        *(() if "held_out" in method.parameters() else ("held_out",)),
    ):
        record.pop(own, None)
    options = method.parameters()
    if "precision" in options:  # "auto" is one of them
        options["precision"] = resolve_precision(options["precision"], resolve_device())
    assert record == {
        "method": method.label,
        **options,
        "images": 6,
        "labels": 6 if method.needs_labels else 0,
        "seed": 5,
    }
    assert json.loads(json.dumps(record)) == record
    if "distilled" in (aligned.merge.alignment or {}):
        assert fitted >= sum(p.numel() for p in aligned.aligners.parameters())
    elif aligned.aligners:
        assert fitted == sum(p.numel() for p in aligned.aligners.parameters())
    else:
        assert fitted > 0


def test_distances_before_and_after_are_recorded_for_every_task_and_tap(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(merged, experts, images, LinearSurgery(rank=16))
    assert aligned.merge is not None
    distances = (aligned.merge.alignment or {})["distances"]
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    for task in merged.tasks:
        expert, aligner = features.experts[task], aligned.aligner(task)
        before = tap_distances(features.merged, expert, (1, 3), cka=True)
        after = tap_distances(features.merged, expert, (1, 3), aligner, cka=True)
        for row, first, second in zip(distances[task], before, after, strict=True):
            assert row["block"] == first.block
            for name in ("l1", "cosine", "explained_variance", "cka"):
                assert row["before"][name] == pytest.approx(getattr(first, name), rel=1e-3, abs=1e-5)
                assert row["after"][name] == pytest.approx(getattr(second, name), rel=1e-3, abs=1e-5)
            assert row["after"]["l1"] < row["before"]["l1"]


@every_method
def test_features_captured_before_give_the_same_result(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, method: Realignment
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, labelled)
    assert state_of(realign(merged, experts, labelled, method, features)) == state_of(
        realign(merged, {e.task.name: e for e in experts}, labelled, method)
    )


def test_linear_surgery_is_the_default_and_a_rank_above_the_channels_means_no_reduction(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    aligned = realign(merged, experts, images)
    assert aligned.merge is not None
    assert aligned.merge.alignment is not None
    assert aligned.merge.alignment["method"] == "surgery-stretched"
    assert aligned.aligners["depth"].config["rank"] == 48
    assert aligned.aligners["depth"].config["stretched"] == "directions"


@every_method
def test_a_model_is_not_aligned_twice(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, method: Realignment
) -> None:
    aligned = realign(merged, experts, labelled, method)
    second = method if method.changes_encoder or method.task_specific else LinearSurgery(4)
    with pytest.raises(SimoError, match="aligned already; re-align the merged model"):
        realign(aligned, experts, labelled, second)


def test_a_missing_expert_is_refused(merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData) -> None:
    with pytest.raises(SimoError, match="no expert for depth"):
        realign(merged, experts[:1], images)


def test_features_without_an_expert_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    del features.experts["depth"]  # type: ignore[attr-defined]
    with pytest.raises(SimoError, match="none of the experts for depth"):
        realign(merged, experts, images, LinearSurgery(4), features)


def test_features_of_another_expert_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    with torch.no_grad():
        experts[1].encoder.get_parameter("vit.blocks.0.mlp.fc1.bias").add_(1.0)
    with pytest.raises(SimoError, match="expert features given for depth are those of another encoder"):
        realign(merged, experts, images, LinearSurgery(4), features)


def test_features_of_other_images_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    with pytest.raises(SimoError, match=r"merged encoder were captured from other images \(6\) than tiny \(val, 7\)"):
        realign(merged, experts, TinyData(7), LinearSurgery(4), features)


def test_numbers_of_numpy_and_whole_floats_are_made_plain() -> None:
    method = realignment("surgery", {"rank": np.int64(4), "steps": 20.0, "lr": np.float32(0.5), "ridge": 1})
    assert method.parameters() | {"rank": 4, "steps": 20, "lr": 0.5, "ridge": 1} == method.parameters()
    assert json.loads(json.dumps(method.parameters())) == method.parameters()
    with pytest.raises(SimoError, match="rank of surgery must be 1 or more, got -3"):
        LinearSurgery(rank=np.int64(-3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (EncoderCalibration(weights={"nosuch": 1.0}), "weights for unknown tasks nosuch"),
        (EncoderNorms(weights=3), "weights are a number for each task"),  # type: ignore[arg-type]
        (TaskNorms(from_block=99), "from_block 99 is out of range"),
    ],
)
def test_what_the_model_cannot_have_is_told_before_any_image_is_read(
    merged: MultiTaskModel, experts: list[SingleTaskModel], method: Realignment, message: str
) -> None:
    with pytest.raises(SimoError, match=message):
        realign(merged, experts, Unreadable(4), method)


@pytest.mark.parametrize("method", [EncoderCalibration(), EncoderNorms(), SurgeryV2(rank=4), TaskNorms()], ids=str)
def test_what_runs_the_experts_again_asks_for_them(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    realign(merged, {}, images, LinearSurgery(4), features)  # reads features alone
    changed = realign(merged, experts, images, SurgeryV2(rank=4, held_out=None), features)
    for model, asked in ((merged, method), (changed, LinearSurgery(4))):
        with pytest.raises(SimoError, match="no expert for depth"):
            realign(model, experts[:1], images, asked, features)


def test_no_images_are_refused(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"tiny \(val\) has no calibration images"):
        realign(merged, experts, TinyData(0))


def test_broken_features_of_an_expert_are_refused_and_the_task_named(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    experts[1].encoder.get_parameter("vit.blocks.0.mlp.fc1.bias").data[0] = torch.inf
    with pytest.raises(SimoError, match=r"features: depth: .*block 1 holds NaN"):
        realign(merged, experts, images)


def test_one_image_is_enough_for_the_label_free_methods(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    for method in METHODS:
        if not method.needs_labels:
            aligned = realign(merged, experts, TinyData(1), method)
            assert all(torch.isfinite(v).all() for v in aligned.state_dict().values()), method.label


@pytest.mark.parametrize("name", sorted(REALIGNMENTS))
def test_a_method_is_found_by_its_name_and_rebuilt_from_its_recorded_options(name: str) -> None:
    method = realignment(name)
    assert method.name == name
    assert realignment(name, json.loads(json.dumps(method.parameters()))) == method


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(
        SimoError,
        match=r"'rotation'; known: auto, batch-norm, encoder-adapters, .*full-affine, .*surgery",
    ):
        realignment("rotation")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("norm-recalibration", {"rank": 4}, "norm-recalibration has no option rank; it has none"),
        ("surgery", {"rank": 0}, "rank of surgery must be 1 or more, got 0"),
        ("surgery", {"start": "one"}, "'zero' or at 'closed-form', got 'one'"),
        ("surgery", {"start": "closed-form", "rank": 1}, "rank of 2 or more"),
        ("surgery", {"lr": -1.0}, "lr positive"),
        ("surgery-closed-form", {"ridge": 0.0}, "ridge must be positive"),
        ("surgery-closed-form", {"ridge": float("nan")}, "ridge must be positive"),
        ("surgery-closed-form", {"rank": "many"}, "a whole number, None or 'auto' as rank, got 'many'"),
        ("surgery-closed-form", {"rank": 3.5}, "surgery-closed-form takes .* as rank, got 3.5"),
        ("surgery", {"rank": 3.5}, "takes a whole number as rank, got 3.5"),
        ("surgery", {"steps": 10.5}, "takes a whole number as steps, got 10.5"),
        ("surgery", {"lr": "fast"}, "takes a number or None as lr, got 'fast'"),
        ("surgery-gradient", {"batch_size": 2.5}, "takes a whole number as batch_size, got 2.5"),
        ("encoder-adapters", {"rank": 2.5}, "takes a whole number as rank, got 2.5"),
        ("encoder-norms", {"epochs": True}, "takes a whole number as epochs, got True"),
        ("full-affine", {"ridge": "auto"}, "full-affine takes a number as ridge, got 'auto'"),
        ("token-linear", {"rank": "auto"}, "takes a whole number or None as rank, got 'auto'"),
        ("spatial", {"rank": None}, "takes a whole number as rank, got None"),
        ("auto", {"budget": "all"}, "takes a number or None as budget, got 'all'"),
        ("head-distilled", {"surgery": "yes"}, "takes a whole number or None as surgery, got 'yes'"),
        ("surgery-closed-form", {"reads": "none"}, "'own', 'all' or 'auto' taps, got 'none'"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        realignment(name, options)
