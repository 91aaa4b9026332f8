"""Evaluation rows: scores, delta against the experts, and what a model is called and costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.evaluation import deltas, evaluate, expert_scores, experts_row, method_name, result_row
from simo_merge.merging import TaskArithmetic, WeightAverage, merge, merge_method
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import LinearSurgery, Surgery, realign
from simo_merge.results import ResultRow
from simo_merge.scoring import score
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, tiny_base, tiny_expert

TASKS = {"segmentation": SEGMENTATION, "depth": DEPTH}


@pytest.fixture
def experts() -> list[SingleTaskModel]:
    base = tiny_base()
    return [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]


@pytest.fixture
def merged(experts: list[SingleTaskModel]) -> MultiTaskModel:
    return merge(experts, TaskArithmetic(0.3), tiny_base())


@pytest.fixture
def data() -> TinyData:
    return TinyData(4, (SEGMENTATION, DEPTH))


# -- delta ------------------------------------------------------------------------------------------------------


def test_delta_compares_each_tasks_primary_metric_with_the_experts_in_its_direction() -> None:
    scores = {"segmentation": {"miou": 0.4, "pixel_accuracy": 0.1}, "depth": {"abs": 0.4, "rel": 9.0}}
    baseline = {"segmentation": {"miou": 0.5, "pixel_accuracy": 0.9}, "depth": {"abs": 0.2, "rel": 1.0}}
    ratio, eq2 = deltas(TASKS, scores, baseline)
    assert ratio == pytest.approx(100 * ((0.4 / 0.5 - 1) + (0.2 / 0.4 - 1)) / 2)
    assert eq2 == pytest.approx(100 * ((0.4 - 0.5) / 0.5 - (0.4 - 0.2) / 0.2) / 2)


def test_experts_of_further_tasks_do_not_count() -> None:
    scores = {"depth": {"abs": 0.4}}
    assert deltas(TASKS, scores, {"depth": {"abs": 0.2}, "segmentation": {"miou": 0.5}})[0] == pytest.approx(-50)


def test_a_task_without_its_experts_score_is_refused() -> None:
    with pytest.raises(SimoError, match="no expert's score for depth"):
        deltas(TASKS, {"depth": {"abs": 0.4}}, {"segmentation": {"miou": 0.5}})


@pytest.mark.parametrize(("ours", "theirs"), [(math.nan, 0.2), (0.4, math.nan)])
def test_delta_is_nan_where_a_primary_metric_could_not_be_measured(ours: float, theirs: float) -> None:
    assert all(math.isnan(d) for d in deltas(TASKS, {"depth": {"abs": ours}}, {"depth": {"abs": theirs}}))


def test_delta_takes_the_primary_metric_of_the_protocol() -> None:
    scores = {"depth": {"rmse": 0.6, "log_rmse": 0.1}}
    baseline = {"depth": {"rmse": 0.3, "log_rmse": 0.4}}
    assert deltas(TASKS, scores, baseline, "astmt") == pytest.approx((-50, -100))


def test_scores_of_another_protocol_are_refused() -> None:
    measured, pooled = {"depth": {"rmse": 0.6, "log_rmse": 0.1}}, {"depth": {"abs": 0.2}}
    with pytest.raises(SimoError, match="scores of depth are abs, but protocol astmt needs rmse; measure the model"):
        deltas(TASKS, measured, pooled, "astmt")


# -- evaluate ---------------------------------------------------------------------------------------------------


def test_the_row_of_a_merged_model_tells_what_was_measured_and_how(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData
) -> None:
    row = evaluate(merged, data, experts, seed=3)
    assert (row.method, row.data, row.split, row.protocol) == ("task-arithmetic", "tiny", "val", "pooled")
    assert (row.evaluated, row.image_size, row.options) == (4, (32, 48), {"scale": 0.3})
    assert row.tasks == ("segmentation", "depth")
    assert (row.seed, row.labels, row.images, row.encoder_passes) == (3, 0, 0, 1)
    assert (row.trainable_parameters, row.fit_seconds) == (0, 0.0)
    assert set(row.per_task["depth"]) == {"abs", "rel", "rmse", "delta1"}
    baseline = expert_scores(experts, data)
    assert (row.delta_ratio, row.delta_eq2) == deltas(TASKS, row.per_task, baseline)
    assert ResultRow.from_json(row.to_json()) == row


def test_the_scores_are_those_of_the_predictions(merged: MultiTaskModel, data: TinyData) -> None:
    row = evaluate(merged, data)
    with torch.inference_mode():
        found = torch.stack([merged(s.image[None], ["depth"])["depth"][0] for s in data.samples]).double()
    target = torch.stack([s.targets["depth"] for s in data.samples]).double()
    mask = torch.stack([s.masks["depth"] for s in data.samples])[:, None]
    assert row.per_task["depth"]["abs"] == pytest.approx(float((found - target).abs()[mask].mean()), rel=1e-5)


def test_scores_of_the_experts_that_are_known_give_the_same_delta(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData
) -> None:
    assert evaluate(merged, data, baseline=expert_scores(experts, data)) == evaluate(merged, data, experts)


@pytest.mark.parametrize(
    ("protocol", "label"), [("pooled", "pooled"), ("libmtl", "libmtl"), ("mtan", "mtan@2"), ("simo", "simo@2")]
)
def test_a_row_says_under_which_protocol_model_and_experts_were_measured(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData, protocol: str, label: str
) -> None:
    row = evaluate(merged, data, experts, protocol=protocol, batch_size=2)
    assert row.protocol == label
    assert row.per_task == score(merged, data, batch_size=2, protocol=protocol)
    baseline = expert_scores(experts, data, protocol=protocol, batch_size=2)
    assert baseline["depth"] == score(experts[1], data, batch_size=2, protocol=protocol)["depth"]
    assert (row.delta_ratio, row.delta_eq2) == deltas(TASKS, row.per_task, baseline, protocol)
    assert experts_row(experts, data, baseline, 0, 9, protocol, 2).protocol == label
    assert ResultRow.from_json(row.to_json()) == row


def test_an_unknown_protocol_is_refused_even_when_scores_are_given(merged: MultiTaskModel, data: TinyData) -> None:
    with pytest.raises(SimoError, match="unknown protocol 'best'"):
        evaluate(merged, data, scores={"depth": {"abs": 0.2}}, protocol="best")


def test_delta_is_nan_without_experts(merged: MultiTaskModel, data: TinyData) -> None:
    row = evaluate(merged, data)
    assert math.isnan(row.delta_ratio)
    assert math.isnan(row.delta_eq2)


def test_the_row_of_an_aligned_model_has_the_cost_of_its_re_alignment(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData
) -> None:
    aligned = realign(merged, experts, TinyData(3), LinearSurgery(rank=4), seed=7)
    row = evaluate(aligned, data, experts, seed=0)
    assert row.method == "task-arithmetic+surgery-stretched"
    assert (row.seed, row.labels, row.images) == (7, 0, 3)
    assert row.trainable_parameters == sum(p.numel() for p in aligned.aligners.parameters())
    assert row.fit_seconds > 0


def test_a_single_expert_against_itself_has_delta_0(experts: list[SingleTaskModel], data: TinyData) -> None:
    row = evaluate(experts[1], data, experts)
    assert (row.method, row.tasks, row.encoder_passes) == ("expert-depth", ("depth",), 1)
    assert (row.delta_ratio, row.delta_eq2) == (0.0, 0.0)


def test_tasks_without_labels_are_left_out(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    row = evaluate(merged, TinyData(2, (DEPTH, NORMALS)), experts)
    assert row.tasks == ("depth",)
    assert math.isfinite(row.delta_ratio)


def test_a_split_without_valid_pixels_gives_nan_and_no_exception(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData
) -> None:
    data.samples = [replace(s, masks={n: torch.zeros_like(m) for n, m in s.masks.items()}) for s in data.samples]
    row = evaluate(merged, data, experts)
    assert math.isnan(row.per_task["depth"]["abs"])
    assert math.isnan(row.delta_ratio)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_task_without_its_expert_is_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData, kept: int
) -> None:
    with pytest.raises(SimoError, match=r"no expert's score for .*depth"):
        evaluate(merged, data, experts[:kept])


def test_data_without_a_task_in_common_is_refused(merged: MultiTaskModel) -> None:
    with pytest.raises(SimoError, match=r"predicts segmentation, depth, but tiny \(val\) has labels for normals"):
        evaluate(merged, TinyData(2, (NORMALS,)))


def test_an_empty_split_is_refused(merged: MultiTaskModel) -> None:
    with pytest.raises(SimoError, match="no images to evaluate on"):
        evaluate(merged, TinyData(0, (DEPTH,)))


# -- rows of their own ------------------------------------------------------------------------------------------


def test_the_experts_row_has_delta_0_and_one_encoder_pass_a_task(
    experts: list[SingleTaskModel], data: TinyData
) -> None:
    experts[0].provenance["train_seconds"] = 12.5
    baseline = expert_scores(experts, data)
    row = experts_row(experts, data, baseline, seed=1, labels=160)
    assert (row.method, row.tasks, row.per_task) == ("experts", ("segmentation", "depth"), baseline)
    assert (row.delta_ratio, row.delta_eq2) == (0.0, 0.0)
    assert (row.encoder_passes, row.labels, row.seed, row.fit_seconds) == (2, 160, 1, 12.5)
    assert row.trainable_parameters == sum(p.numel() for e in experts for p in e.parameters())


def test_a_row_for_a_model_from_elsewhere_takes_what_it_is_told(data: TinyData) -> None:
    scores = {"depth": {"abs": 0.3}}
    row = result_row("joint-equal", data, TASKS, scores, {"depth": {"abs": 0.2}}, 0, 1, labels=9, fit_seconds=2.0)
    assert (row.method, row.labels, row.fit_seconds) == ("joint-equal", 9, 2.0)
    assert row.delta_ratio == pytest.approx(100 * (0.2 / 0.3 - 1))


def test_a_multi_task_model_is_called_after_its_merge_and_its_re_alignment(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(2)
    surgery = Surgery(rank=2, steps=1)
    names = [
        method_name(merged),
        method_name(merge(experts, WeightAverage(), tiny_base())),
        method_name(realign(merged, experts, images, surgery)),
        method_name(realign(merged, experts, images, replace(surgery, start="closed-form"))),
    ]
    assert names == [
        "task-arithmetic",
        "weight-average",
        "task-arithmetic+surgery",
        "task-arithmetic+surgery-from-closed-form",
    ]
    merged.merge = None
    assert method_name(merged) == "multi-task"


def test_the_row_counts_the_images_and_labels_that_the_merge_learned_from(
    experts: list[SingleTaskModel], data: TinyData
) -> None:
    learned = merge(experts, merge_method("fisher", {"source": "labels"}), tiny_base(), data)
    row = evaluate(learned, TinyData(3, (SEGMENTATION, DEPTH)), experts)
    assert (row.images, row.labels) == (4, 4)
    aligned = realign(learned, experts, TinyData(6), LinearSurgery(rank=2))
    row = evaluate(aligned, data, experts)
    assert (row.images, row.labels) == (6, 4)
    unlabelled = merge(experts, merge_method("regmean"), tiny_base(), TinyData(5))
    assert (evaluate(unlabelled, data, experts).images, evaluate(unlabelled, data, experts).labels) == (5, 0)
    assert evaluate(merge(experts, WeightAverage(), tiny_base(), data), data, experts).images == 0
