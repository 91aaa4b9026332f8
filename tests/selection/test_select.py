"""Choosing the options of any merge: the best are found, weights are merged in place, the test split is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from simo_merge.data import Sample
from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate
from simo_merge.merging import Fisher, MergeMethod, Parameter, TaskArithmetic, TaskSpecificMethod, WeightAverage, merge
from simo_merge.merging.elementwise.ties import Ties
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.models import SingleTaskModel
from simo_merge.realign import LinearSurgery, capture_all, realign, tap_distances
from simo_merge.selection import Agreement, Candidate, MethodSelection, ValidationDelta, select
from simo_merge.selection.candidates import best, describe, grid, with_options
from simo_merge.selection.in_place import InPlaceMerge
from simo_merge.selection.remembered import Remembered
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, TinyData, labelled_by, state_of

SCALES = (0.1, 0.3, 0.5, 0.7)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OwnEncoders(TaskSpecificMethod):
    """A share of every expert's own task vector."""

    name: ClassVar[str] = "own-encoders"
    share: float = 1.0

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        return parameter.base

    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        return parameter.base + self.share * parameter.vectors


# -- the best is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 3])
def test_agreement_finds_the_planted_scale(
    base: Base, equal: list[SingleTaskModel], images: TinyData, rank: int | None
) -> None:
    found = select(equal, TaskArithmetic(), {"scale": SCALES}, Agreement(images, rank), base)
    assert found.method == TaskArithmetic(0.5)
    assert found.options == {"scale": 0.5}
    assert [c.options["scale"] for c in found.candidates] == list(SCALES)
    assert found.candidates[2].score == pytest.approx(1, abs=1e-4)
    assert all(0 < c.seconds < found.seconds for c in found.candidates)


def test_validation_finds_the_planted_scale_and_its_scores_are_the_deltas_of_fresh_merges(
    base: Base, equal: list[SingleTaskModel], images: TinyData
) -> None:
    validation = labelled_by(equal, images)
    found = select(equal, TaskArithmetic(), {"scale": SCALES}, ValidationDelta(validation), base)
    assert found.options == {"scale": 0.5}
    assert found.criterion == "delta on tiny (val)"
    for candidate in found.candidates:
        row = evaluate(merge(equal, TaskArithmetic(candidate.options["scale"]), base), validation, equal)
        assert candidate.score == pytest.approx(row.delta_ratio, abs=1e-9)


def test_delta_after_surgery_is_that_of_the_re_aligned_model(
    base: Base, equal: list[SingleTaskModel], images: TinyData
) -> None:
    validation, calibration = labelled_by(equal, images), TinyData(5, seed=3)
    criterion = ValidationDelta(validation, rank=3, calibration=calibration)
    found = select(equal, TaskArithmetic(), {"scale": [0.2, 0.5]}, criterion, base)
    assert found.criterion == "delta on tiny (val) after rank 3 surgery"
    for candidate in found.candidates:
        model = merge(equal, TaskArithmetic(candidate.options["scale"]), base)
        row = evaluate(realign(model, equal, calibration, LinearSurgery(3, stretch="none")), validation, equal)
        assert candidate.score == pytest.approx(row.delta_ratio, abs=1e-6)
    before = select(equal, TaskArithmetic(), {"scale": [0.2]}, ValidationDelta(validation), base)
    assert before.candidates[0].score != found.candidates[0].score
    with pytest.raises(SimoError, match="takes both a rank and calibration images"):
        ValidationDelta(validation, rank=3)


def test_every_combination_of_the_options_is_tried_and_the_others_stay(
    base: Base, equal: list[SingleTaskModel], images: TinyData
) -> None:
    space = {"density": [0.3, 1.0], "scale": [0.4, 1.0]}
    found = select(equal, Ties(trim="per_tensor"), space, Agreement(images), base)
    assert [dict(c.options) for c in found.candidates] == [
        {"density": 0.3, "scale": 0.4},
        {"density": 0.3, "scale": 1.0},
        {"density": 1.0, "scale": 0.4},
        {"density": 1.0, "scale": 1.0},
    ]
    assert found.method == Ties(density=1.0, scale=1.0, trim="per_tensor")  # equal experts, untrimmed: their mean
    assert found.candidates[3].score == pytest.approx(1, abs=1e-4)


def test_a_merge_that_gives_every_task_its_own_encoder_is_scored_by_those(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    found = select(different, OwnEncoders(), {"share": [0.2, 1.0, 0.6]}, Agreement(images), base)
    assert found.options == {"share": 1.0}
    assert found.candidates[1].score == pytest.approx(1, abs=1e-4)
    with pytest.raises(SimoError, match="no shared features to re-align; choose without a rank"):
        select(different, OwnEncoders(), {"share": [0.2]}, Agreement(images, 3), base)


def test_the_agreement_of_a_fresh_merge_is_the_candidates(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    found = select(different, TaskArithmetic(), {"scale": [0.9, 0.3]}, Agreement(images), base)
    for candidate in found.candidates:
        model = merge(different, TaskArithmetic(candidate.options["scale"]), base)
        features = capture_all(model, {e.task.name: e for e in different}, images)
        values = [
            distance.explained_variance
            for expert in features.experts.values()
            for distance in tap_distances(features.merged, expert, model.encoder.taps)
        ]
        assert candidate.score == sum(values) / 4


def test_a_method_that_learns_from_images_is_given_them_or_refused(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    method, space = AdaMerging(steps=2, batch_size=2), {"initial": [0.0, 0.4]}
    with pytest.raises(SimoError, match=r"adamerging learns from images; give it calibration images \(images="):
        select(different, method, space, Agreement(images), base)
    found = select(different, method, space, Agreement(images), base, images=images, seed=3)
    assert len(found.candidates) == 2
    model = merge(different, method, base, images, seed=3)
    assert model.merge is not None  # the same options learn the same thing outside
    again = select(different, method, {"initial": [0.3]}, Agreement(images), base, images=images, seed=3)
    features = capture_all(model, {e.task.name: e for e in different}, images)
    expected = [
        d.explained_variance for e in features.experts.values() for d in tap_distances(features.merged, e, (1, 3))
    ]
    assert again.candidates[0].score == pytest.approx(sum(expected) / 4, abs=1e-6)


# -- in place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "methods",
    [
        [TaskArithmetic(0.2), TaskArithmetic(0.7), WeightAverage(), TaskArithmetic(0.2)],
        [Ties(0.2), Ties(0.5, scale=0.3)],
        [OwnEncoders(0.2), OwnEncoders(0.9)],
    ],
)
def test_weights_merged_in_place_equal_a_fresh_merge_bit_for_bit(
    base: Base, different: list[SingleTaskModel], methods: list[MergeMethod]
) -> None:
    merged = InPlaceMerge(different, base, None, CPU, "float32", 0)
    models = set()
    for method in methods:
        model = merged(method)
        models.add(id(model))
        assert state_of(model) == state_of(merge(different, method, base))
    assert len(models) == 1


def test_the_experts_are_not_changed(base: Base, different: list[SingleTaskModel], images: TinyData) -> None:
    before = state_of(base.vit, *different)
    select(different, TaskArithmetic(), {"scale": SCALES}, Agreement(images, 2), base)
    select(different, OwnEncoders(), {"share": [0.2]}, ValidationDelta(TinyData(2, (DEPTH, NORMALS))), base)
    assert state_of(base.vit, *different) == before


def test_images_are_read_once(base: Base, different: list[SingleTaskModel]) -> None:
    class Counting(TinyData):
        reads = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.reads += 1
            return super().__getitem__(index)

    select(different, TaskArithmetic(), {"scale": SCALES}, Agreement(Counting(5)), base)
    assert Counting.reads == 5
    select(different, TaskArithmetic(), {"scale": SCALES}, ValidationDelta(Counting(5, (DEPTH, NORMALS))), base)
    assert Counting.reads == 10


def test_no_more_samples_are_kept_than_memory_is_given_for(images: TinyData) -> None:
    size = images[0].image.numel() * 4
    kept = Remembered(images, budget=2 * size + 1)
    assert all(kept[i] is kept[i] for i in range(6))
    assert len(kept._kept) == 2
    assert (kept.name, kept.split, kept.tasks, kept.keys, len(kept)) == ("tiny", "val", {}, images.keys, 6)


# -- what is refused --------------------------------------------------------------------------------------------


def test_nothing_is_chosen_on_the_test_split(base: Base, different: list[SingleTaskModel], images: TinyData) -> None:
    labelled, pictures = TinyData(2, (DEPTH, NORMALS), split="test"), TinyData(2, split="test")
    valid = TinyData(2, (DEPTH, NORMALS))
    surgery = ValidationDelta(valid, rank=2, calibration=pictures)
    for criterion in (ValidationDelta(labelled), Agreement(pictures), surgery):
        with pytest.raises(SimoError, match=r"nothing is chosen on the test split, and tiny \(test\) is one"):
            select(different, TaskArithmetic(), {"scale": SCALES}, criterion, base)
    with pytest.raises(SimoError, match="nothing is chosen on the test split"):
        select(different, AdaMerging(), {"initial": [0.3]}, Agreement(images), base, images=pictures)


@pytest.mark.parametrize(
    ("method", "space", "message"),
    [
        (TaskArithmetic(), {"alpha": [1]}, "task-arithmetic has no option 'alpha'; it has scale"),
        (WeightAverage(), {"scale": [1]}, "weight-average has no option 'scale'; it has none"),
        (TaskArithmetic(), {"scale": []}, "no candidates to choose from: option 'scale' has no values"),
        (TaskArithmetic(), {}, "no candidates to choose from: no option was named"),
        (TaskArithmetic(), {"scale": [0.3, float("nan")]}, "scale of task.arithmetic must be a finite number"),
    ],
)
def test_candidates_that_cannot_be_are_refused_before_anything_is_computed(
    different: list[SingleTaskModel], images: TinyData, method: MergeMethod, space: dict[str, Any], message: str
) -> None:
    different[0].base = different[1].base = None  # to merge would be refused
    with pytest.raises(SimoError, match=message):
        select(different, method, space, Agreement(images))


# -- the parts --------------------------------------------------------------------------------------------------


def test_the_last_option_varies_fastest() -> None:
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert with_options(Ties(0.3), {"scale": 0.5}) == Ties(0.3, scale=0.5)


def test_the_highest_finite_score_wins_and_of_equals_the_first() -> None:
    candidates = [Candidate({"a": i}, score) for i, score in enumerate((float("nan"), 1.0, 2.0, 2.0, float("inf")))]
    assert best(candidates, "x").options == {"a": 2}
    with pytest.raises(SimoError, match="no candidate gives a finite x; tried a=0"):
        best(candidates[:1], "x")


def test_options_are_described_as_a_person_writes_them() -> None:
    assert describe({"scale": 0.30000000000000004, "trim": "global", "k": 3}) == "scale=0.3, trim=global, k=3"


def test_seconds_do_not_make_selections_differ() -> None:
    first, second = (
        MethodSelection(WeightAverage(), {}, (Candidate({}, 1.0, seconds),), "x", seconds) for seconds in (1.0, 2.0)
    )
    assert first == second


def test_the_callers_experts_stay_where_they_are_and_in_their_mode(
    base: Base, equal: list[SingleTaskModel], images: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, validation = TinyData(4, seed=3), labelled_by(equal, images)
    moved: list[object] = []
    to = torch.nn.Module.to

    def noted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        moved.append(module)
        return to(module, *args, **kwargs)

    for expert in equal:
        expert.train()
    monkeypatch.setattr(torch.nn.Module, "to", noted)
    for criterion in (Agreement(images), ValidationDelta(validation, rank=2, calibration=calibration)):
        select(equal, TaskArithmetic(), {"scale": [0.5]}, criterion, base)
    assert all(expert.training and expert.encoder.training and expert.decoder.training for expert in equal)
    assert not any(module is own for module in moved for expert in equal for own in (expert, expert.encoder))


def test_labels_that_a_method_needs_are_asked_for(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    space = {"floor": [1e-6]}
    with pytest.raises(SimoError, match=r"fisher .* learns from labels, and tiny \(val\) has none for depth, normals"):
        select(different, Fisher("labels"), space, Agreement(images), base, images=images)
