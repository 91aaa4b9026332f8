"""Δ in every form: the identities it must obey; tests/metrics/test_published_tables.py has the tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.errors import SimoError
from simo_merge.metrics import delta_eq2, delta_per_metric, delta_ratio, gain_eq2, gain_ratio

NYUV2 = {"segmentation": True, "depth": False, "normals": False}

positive = st.floats(1e-3, 1e3)
scored_task = st.tuples(positive, positive, st.booleans())  # score, baseline, higher is better


def by_task(
    tasks: list[tuple[float, float, bool]],
) -> tuple[dict[str, float], dict[str, float], dict[str, bool]]:
    names = [f"task{index}" for index in range(len(tasks))]
    scores, baseline, higher = (dict(zip(names, column, strict=True)) for column in zip(*tasks, strict=True))
    return scores, baseline, higher


@given(st.lists(scored_task, min_size=1, max_size=6))
def test_the_baseline_against_itself_is_zero(tasks):
    _, baseline, higher = by_task(tasks)
    assert delta_ratio(baseline, baseline, higher) == pytest.approx(0.0, abs=1e-9)
    assert delta_eq2(baseline, baseline, higher) == pytest.approx(0.0, abs=1e-9)


@given(st.lists(scored_task, min_size=1, max_size=6), positive)
def test_units_do_not_matter(tasks, factor):
    scores, baseline, higher = by_task(tasks)
    for delta in (delta_ratio, delta_eq2):
        in_other_units = delta(
            {task: factor * value for task, value in scores.items()},
            {task: factor * value for task, value in baseline.items()},
            higher,
        )
        assert in_other_units == pytest.approx(delta(scores, baseline, higher), rel=1e-6, abs=1e-6)


@given(st.lists(scored_task, min_size=1, max_size=6))
def test_the_ratio_form_is_never_below_the_other_nor_below_minus_100(tasks):
    scores, baseline, higher = by_task(tasks)
    ratio = delta_ratio(scores, baseline, higher)
    assert ratio >= delta_eq2(scores, baseline, higher) - 1e-6 * abs(ratio) - 1e-6
    assert ratio > -100.0


@given(positive, positive)
def test_the_forms_agree_where_higher_is_better(score, baseline):
    assert gain_ratio(score, baseline, True) == pytest.approx(gain_eq2(score, baseline, True), rel=1e-6, abs=1e-6)


@given(positive, positive, st.booleans())
def test_positive_means_better_than_the_baseline(score, baseline, higher):
    better = (score > baseline) if higher else (score < baseline)
    for gain in (gain_ratio(score, baseline, higher), gain_eq2(score, baseline, higher)):
        assert (gain > 0) == better or score == pytest.approx(baseline, rel=1e-9)


def test_the_mean_is_over_the_scored_tasks_even_when_directions_of_others_are_known():
    assert delta_ratio({"depth": 0.5}, {"depth": 1.0}, NYUV2) == pytest.approx(100.0)
    assert delta_eq2({"depth": 0.5}, {"depth": 1.0}, NYUV2) == pytest.approx(50.0)


def test_a_score_that_could_not_be_measured_makes_delta_unmeasured():
    assert math.isnan(delta_ratio({"depth": math.nan}, {"depth": 1.0}, NYUV2))
    assert math.isnan(delta_eq2({"depth": 1.0}, {"depth": math.nan}, NYUV2))


@given(st.lists(scored_task, min_size=1, max_size=6))
def test_a_mean_over_metrics_is_equation_2_where_every_task_has_one_metric(tasks):
    scores, baseline, higher = by_task(tasks)
    expected = delta_eq2(scores, baseline, higher)
    assert delta_per_metric(scores, baseline, higher) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(scored_task, min_size=2, max_size=6), st.lists(positive, min_size=6, max_size=6), positive)
def test_weights_matter_only_by_their_ratios_and_a_weight_of_0_leaves_a_metric_out(tasks, weights, factor):
    scores, baseline, higher = by_task(tasks)
    by_metric = dict(zip(scores, weights, strict=False))
    scaled = {name: factor * weight for name, weight in by_metric.items()}
    weighted = delta_per_metric(scores, baseline, higher, by_metric)
    assert delta_per_metric(scores, baseline, higher, scaled) == pytest.approx(weighted, rel=1e-6, abs=1e-6)
    without = {name: 0.0 if name == "task0" else 1.0 for name in scores}
    del scores["task0"], baseline["task0"]
    kept = delta_eq2(scores, baseline, higher)
    again = delta_per_metric({"task0": 1.0, **scores}, {"task0": 2.0, **baseline}, higher, without)
    assert again == pytest.approx(kept, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"depth": 1.0}, r"weights names \['depth'\], it lacks \['normals'\]"),
        ({"depth": 0.0, "normals": 0.0}, "a sum above 0"),
        ({"depth": -1.0, "normals": 2.0}, "none below 0"),
        ({"depth": math.nan, "normals": 2.0}, "a sum above 0"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights, message):
    scores = {"depth": 1.0, "normals": 1.0}
    with pytest.raises(SimoError, match=message):
        delta_per_metric(scores, scores, NYUV2, weights)


@pytest.mark.parametrize("delta", [delta_ratio, delta_eq2, delta_per_metric])
@pytest.mark.parametrize(
    ("scores", "baseline", "message"),
    [
        ({}, {}, "at least one score"),
        ({"depth": 1.0}, {"depth": 1.0, "normals": 2.0}, "same scores"),
        ({"depth": 1.0, "normals": 2.0}, {"depth": 1.0}, "same scores"),
        ({"edges": 1.0}, {"edges": 1.0}, r"lacks \['edges'\]"),
        ({"depth": 1.0}, {"depth": 0.0}, "'depth'.*baseline is 0.0"),
        ({"depth": 1.0}, {"depth": -1.0}, "baseline is -1.0"),
        ({"depth": -1.0}, {"depth": 1.0}, "score is -1.0"),
    ],
)
def test_scores_that_have_no_delta_are_refused(delta, scores, baseline, message):
    with pytest.raises(SimoError, match=message):
        delta(scores, baseline, NYUV2)


def test_an_error_of_zero_has_no_ratio_but_has_a_difference():
    with pytest.raises(SimoError, match="infinite ratio"):
        delta_ratio({"depth": 0.0}, {"depth": 1.0}, NYUV2)
    assert delta_eq2({"depth": 0.0}, {"depth": 1.0}, NYUV2) == 100.0
