"""Choosing the coefficient: by labels of a validation split, or by agreement with the experts' features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate
from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import SingleTaskModel
from simo_merge.realign import LinearSurgery, capture, capture_all, realign, tap_distances
from simo_merge.selection import select_by_agreement, select_by_validation
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, TinyData, labelled_by, state_of

SCALES = (0.1, 0.3, 0.5, 0.7)


# -- without labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 4])
def test_the_coefficient_that_gives_the_experts_features_back_is_chosen(
    base: Base, equal: list[SingleTaskModel], images: TinyData, rank: int | None
) -> None:
    found = select_by_agreement(equal, images, SCALES, base, rank=rank)
    assert found.scale == 0.5
    assert set(found.scores) == set(SCALES)
    assert found.scores[0.5] == pytest.approx(1, abs=1e-4)
    assert max(found.scores[s] for s in SCALES if s != 0.5) < 0.999


def test_the_score_is_the_mean_explained_variance_of_the_merged_features(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    found = select_by_agreement(different, images, (0.3,), base)
    model = merge(different, TaskArithmetic(0.3), base)
    features = capture_all(model, {e.task.name: e for e in different}, images)
    values = [
        distance.explained_variance
        for expert in features.experts.values()
        for distance in tap_distances(features.merged, expert, model.encoder.taps)
    ]
    assert found.scores[0.3] == pytest.approx(sum(values) / 4)
    assert found.criterion == "agreement with the experts' features"


def test_with_a_rank_surgery_is_fitted_to_even_images_and_scored_on_odd_ones(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    found = select_by_agreement(different, images, (0.3,), base, rank=4)
    even, odd = TinyData(7), TinyData(7)
    for part, start in ((even, 0), (odd, 1)):
        part.samples, part.keys = images.samples[start::2], images.keys[start::2]
    model = merge(different, TaskArithmetic(0.3), base)
    aligned = realign(model, different, even, LinearSurgery(4, stretch="none"))

    def agreement(data: TinyData) -> float:
        features = capture_all(model, {e.task.name: e for e in different}, data)
        values = [
            distance.explained_variance
            for task, expert in features.experts.items()
            for distance in tap_distances(features.merged, expert, model.encoder.taps, aligned.aligner(task))
        ]
        return sum(values) / len(values)

    assert found.scores[0.3] == pytest.approx(agreement(odd), abs=1e-5)
    assert agreement(odd) < agreement(even)
    assert found.criterion.endswith("after rank 4 surgery")


def test_features_of_the_experts_captured_before_are_used(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    known = {e.task.name: capture(e.encoder, images) for e in different}
    expected = select_by_agreement(different, images, SCALES, base, rank=4)
    assert select_by_agreement(different, images, SCALES, base, rank=4, expert_features=known) == expected
    one_sided = dict.fromkeys(known, known["depth"])
    other = select_by_agreement(different, images, SCALES, base, rank=4, expert_features=one_sided)
    assert other.scores != expected.scores


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_cannot_be_held_out_from_itself(base: Base, different: list[SingleTaskModel], count: int) -> None:
    with pytest.raises(SimoError, match="two calibration images or more"):
        select_by_agreement(different, TinyData(count), SCALES, base, rank=4)


# -- with labels ------------------------------------------------------------------------------------------------


def test_the_coefficient_with_the_best_delta_is_chosen(
    base: Base, equal: list[SingleTaskModel], images: TinyData
) -> None:
    validation = labelled_by(equal, images)
    found = select_by_validation(equal, validation, SCALES, base)
    assert found.scale == 0.5
    assert found.scores[0.5] == pytest.approx(0, abs=0.5)
    assert found.criterion == "delta on tiny (val)"
    for scale in SCALES:
        row = evaluate(merge(equal, TaskArithmetic(scale), base), validation, equal)
        assert found.scores[scale] == pytest.approx(row.delta_ratio, abs=1e-6)


def test_a_split_on_which_delta_cannot_be_measured_is_refused(base: Base, different: list[SingleTaskModel]) -> None:
    blank = TinyData(2, (DEPTH, NORMALS))
    blank.samples = [replace(s, masks={n: torch.zeros_like(m) for n, m in s.masks.items()}) for s in blank.samples]
    with pytest.raises(
        SimoError, match=r"no candidate gives a finite delta on tiny \(val\); tried scale=0.1; scale=0.3"
    ):
        select_by_validation(different, blank, (0.1, 0.3), base)


# -- both -------------------------------------------------------------------------------------------------------


def test_no_coefficients_are_refused(base: Base, different: list[SingleTaskModel], images: TinyData) -> None:
    with pytest.raises(SimoError, match="no candidates to choose from: option 'scale' has no values"):
        select_by_agreement(different, images, (), base)
    with pytest.raises(SimoError, match="no candidates to choose from: option 'scale' has no values"):
        select_by_validation(different, TinyData(2, (DEPTH, NORMALS)), (), base)


def test_the_experts_are_not_changed(base: Base, different: list[SingleTaskModel], images: TinyData) -> None:
    before = state_of(base.vit, *different)
    select_by_agreement(different, images, (0.1, 0.3), base, rank=4)
    select_by_validation(different, TinyData(2, (DEPTH, NORMALS)), (0.1, 0.3), base)
    assert state_of(base.vit, *different) == before


def test_what_the_coefficient_was_chosen_by_is_recorded(
    base: Base, different: list[SingleTaskModel], images: TinyData
) -> None:
    free = select_by_agreement(different, images, (0.3,), base)
    chosen = free.recorded_in(merge(different, TaskArithmetic(free.scale), base))
    assert chosen.merge is not None
    assert (chosen.merge.images, chosen.merge.labels) == (len(images), 0)
    paid = select_by_validation(different, TinyData(5, (DEPTH, NORMALS)), (0.3,), base)
    chosen = paid.recorded_in(merge(different, TaskArithmetic(paid.scale), base))
    assert chosen.merge is not None
    assert (chosen.merge.images, chosen.merge.labels) == (5, 5)
