"""Metrics against plain versions of themselves; tests/metrics has protocols and the mistakes of published code."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import simo_merge  # noqa: F401  # mends torchvision before torchmetrics imports it
from simo_merge.errors import SimoError
from simo_merge.metrics import (
    BatchMean,
    DepthMetric,
    Metric,
    NormalsMetric,
    RegressionMetric,
    SegmentationMetric,
    angles_between,
    angles_by_acos,
)

CLASSES = 5
Batch = tuple[Tensor, Tensor, Tensor]


def segmentation_batch(images: int = 6, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES - 1, (images, 7, 9), generator=random)  # the last class is absent
    logits = torch.randn(images, CLASSES, 7, 9, generator=random)
    logits[:, CLASSES - 1] = -10.0
    logits.scatter_add_(1, target[:, None], torch.full((images, 1, 7, 9), 1.0))
    return logits, target, torch.rand(images, 7, 9, generator=random) > 0.3


def map_batch(channels: int, images: int = 6, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    target = 0.2 + 4.0 * torch.rand(images, channels, 7, 9, generator=random)
    prediction = (target + 0.7 * torch.randn(target.shape, generator=random)).clamp(min=0.0)
    return prediction, target, torch.rand(images, 7, 9, generator=random) > 0.3


def normals_batch(images: int = 6, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    target = torch.nn.functional.normalize(torch.randn(images, 3, 7, 9, generator=random), dim=1)
    prediction = target + 0.5 * torch.randn(target.shape, generator=random)
    return (
        torch.nn.functional.normalize(prediction, dim=1),
        target,
        torch.rand(images, 7, 9, generator=random) > 0.3,
    )


KINDS: dict[str, tuple[Callable[[], Metric], Callable[..., Batch]]] = {
    "segmentation": (lambda: SegmentationMetric(CLASSES), segmentation_batch),
    "depth": (DepthMetric, lambda **options: map_batch(1, **options)),
    "normals": (NormalsMetric, normals_batch),
    "regression": (RegressionMetric, lambda **options: map_batch(2, **options)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def scored(metric: Metric, *batches: Batch) -> dict[str, float]:
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def valid(values: Tensor, mask: Tensor) -> np.ndarray:
    return values.movedim(1, -1)[mask].double().numpy()


# -- against plain versions
# --------------------------------------------------------------------------------------


def test_segmentation_is_intersection_over_union_of_the_pooled_pixels():
    logits, target, mask = segmentation_batch()
    metric = SegmentationMetric(CLASSES)
    scores = scored(metric, (logits, target, mask))

    predicted, wanted = logits.argmax(1)[mask].numpy(), target[mask].numpy()
    iou = []
    for index in range(CLASSES - 1):
        both, either = (
            ((predicted == index) & (wanted == index)).sum(),
            ((predicted == index) | (wanted == index)).sum(),
        )
        iou.append(both / either)
    assert scores["miou"] == pytest.approx(np.mean(iou))
    assert scores["pixel_accuracy"] == pytest.approx((predicted == wanted).mean())
    np.testing.assert_allclose(metric.per_class().numpy(), [*iou, math.nan])
    labels_by_row = metric.sums["confusion"].sum(dim=1).numpy()
    np.testing.assert_array_equal(labels_by_row, np.bincount(wanted, minlength=CLASSES))


@pytest.mark.parametrize("ignored", [-1, 255])
def test_segmentation_agrees_with_torchmetrics(ignored):
    """Its `MulticlassJaccardIndex` pools; the last class of these batches is absent."""
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    ours = SegmentationMetric(CLASSES)
    mean = MulticlassJaccardIndex(CLASSES, ignore_index=ignored)
    each = MulticlassJaccardIndex(CLASSES, ignore_index=ignored, average=None)
    confusion = MulticlassConfusionMatrix(CLASSES, ignore_index=ignored)
    for seed in range(3):
        logits, target, mask = segmentation_batch(seed=seed)
        mask[0] = False  # an image that is all void
        ours.update(logits, torch.where(mask, target, ignored), mask)
        for theirs in (mean, each, confusion):
            theirs.update(logits, torch.where(mask, target, ignored))
    assert torch.equal(ours.sums["confusion"], confusion.compute())
    assert ours.compute()["miou"] == pytest.approx(float(mean.compute()), abs=1e-6)
    np.testing.assert_allclose(ours.per_class()[:-1], each.compute()[:-1], atol=1e-6)
    zero = SegmentationMetric(CLASSES, "zero")
    zero.sums = ours.sums
    assert zero.compute()["miou"] == pytest.approx(float(each.compute().mean()), abs=1e-6)  # theirs: absent is 0


def test_depth_errors_are_the_textbook_ones():
    prediction, target, mask = map_batch(1)
    p, g = valid(prediction, mask), valid(target, mask)
    with np.errstate(divide="ignore"):
        within = np.maximum(p / g, g / p) < 1.25
    assert scored(DepthMetric(), (prediction, target, mask)) == pytest.approx(
        {
            "abs": np.abs(p - g).mean(),
            "rel": (np.abs(p - g) / g).mean(),
            "rmse": np.sqrt(((p - g) ** 2).mean()),
            "delta1": within.mean(),
        }
    )


def test_regression_errors_are_means_over_pixels_and_channels():
    prediction, target, mask = map_batch(2)
    error = valid(prediction, mask) - valid(target, mask)
    assert scored(RegressionMetric(), (prediction, target, mask)) == pytest.approx(
        {"abs": np.abs(error).mean(), "rmse": np.sqrt((error**2).mean())}
    )


def test_normals_are_angles_in_degrees_with_the_exact_median():
    prediction, target, mask = normals_batch()
    cosine = (valid(prediction, mask) * valid(target, mask)).sum(axis=1)
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # in float64 accurate enough away from 0
    assert scored(NormalsMetric(), (prediction, target, mask)) == pytest.approx(
        {
            "mean": angles.mean(),
            "median": np.median(angles),
            "within_11.25": (angles < 11.25).mean(),
            "within_22.5": (angles < 22.5).mean(),
            "within_30": (angles < 30).mean(),
        },
        rel=1e-5,
    )


def test_log_rmse_is_a_difference_of_logarithms_with_predictions_kept_above_zero():
    prediction, target, mask = map_batch(1)
    p, g = np.maximum(valid(prediction, mask), 1e-9), valid(target, mask)
    assert (p == 1e-9).any()
    found = scored(DepthMetric(("log_rmse",)), (prediction, target, mask))
    assert found == pytest.approx({"log_rmse": np.sqrt(np.mean((np.log(g) - np.log(p)) ** 2))})


def given_angles(prediction: Tensor, _: Tensor) -> Tensor:
    """Takes the first component of a prediction for the angle."""
    return prediction[:, 0]


angle = st.sampled_from([0.0, 11.25, 22.5, 30.0, 180.0]) | st.floats(0, 180, width=32)


@given(st.lists(st.lists(angle, max_size=9), min_size=1, max_size=5))
def test_median_and_thresholds_are_exactly_those_of_numpy(batches):
    metric = NormalsMetric(("median", "within_11.25", "within_22.5", "within_30", "rmse"), angles=given_angles)
    for angles in batches:
        image = torch.tensor(angles, dtype=torch.float32).expand(1, 3, 1, -1)
        metric.update(image, image, torch.ones(1, 1, len(angles), dtype=torch.bool))
    together = np.array([value for angles in batches for value in angles], dtype=np.float32)
    scores = metric.compute()
    if together.size == 0:
        assert all(math.isnan(score) for score in scores.values())
        return
    assert scores["median"] == np.median(together)
    for threshold in (11.25, 22.5, 30):
        assert scores[f"within_{threshold:g}"] == np.mean(together < threshold)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(together.astype(np.float64) ** 2)))


def test_angles_are_kept_only_for_the_median():
    metric = NormalsMetric(("mean",))
    metric.update(*normals_batch())
    assert not metric._angles


# -- what is added up
# --------------------------------------------------------------------------------------------


@every_kind
@given(cuts=st.lists(st.integers(0, 6), max_size=4), workers=st.integers(1, 3))
def test_scores_depend_neither_on_batches_nor_on_workers(kind, cuts, workers):
    build, make = KINDS[kind]
    whole = make()
    edges = [0, *sorted(cuts), 6]
    metrics = [build() for _ in range(workers)]
    for index, (start, stop) in enumerate(pairwise(edges)):  # empty batches included
        metrics[index % workers].update(*(part[start:stop] for part in whole))
    together = build()
    for metric in metrics:
        together.merge(pickle.loads(pickle.dumps(metric)))  # as all_gather_object does
    assert together.compute() == pytest.approx(scored(build(), whole), rel=1e-12)
    assert together.valid_pixels == int(whole[2].sum())


@every_kind
def test_computing_in_between_changes_nothing(kind):
    build, make = KINDS[kind]
    first, second = make(seed=1), make(seed=2)
    metric = build()
    metric.update(*first)
    early = metric.compute()
    other = build()
    other.merge(metric)
    other.update(*second)
    other.compute()
    assert metric.compute() == early
    metric.update(*second)
    assert metric.compute() == pytest.approx(scored(build(), first, second), rel=1e-12)


@every_kind
def test_what_lies_under_an_unset_mask_does_not_count(kind):
    build, make = KINDS[kind]
    prediction, target, mask = make()
    hidden_prediction = torch.where(mask[:, None], prediction, math.nan)
    if kind == "segmentation":
        hidden_target = torch.where(mask, target, 255)
    else:
        hidden_target = torch.where(mask[:, None], target, math.nan)
    assert scored(build(), (hidden_prediction, hidden_target, mask)) == scored(build(), (prediction, target, mask))


@every_kind
def test_nothing_valid_is_unmeasured_and_poisons_nothing(kind):
    build, make = KINDS[kind]
    prediction, target, mask = make()
    nothing = (prediction, target, torch.zeros_like(mask))
    assert all(math.isnan(value) for value in build().compute().values())
    assert all(math.isnan(value) for value in scored(build(), nothing).values())
    assert scored(build(), nothing, (prediction, target, mask)) == scored(build(), (prediction, target, mask))


@every_kind
def test_half_precision_predictions_are_measured_in_full_precision(kind):
    build, make = KINDS[kind]
    prediction, target, mask = make()
    halved = prediction.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = scored(build(), (halved, target, mask))
    assert under_autocast == pytest.approx(scored(build(), (halved.float(), target, mask)), rel=1e-6)


# -- angles
# ------------------------------------------------------------------------------------------------------

direction = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: math.hypot(*v) > 1e-2)


@pytest.mark.parametrize("degrees", [1e-4, 1e-3, 1e-2, 1.0, 90.0, 179.0, 179.999])
def test_small_and_large_angles_are_accurate(degrees):
    """By acos(p·g) in float32 the first two are 0."""
    angle = math.radians(degrees)
    p, g = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]]), torch.tensor([[0.0, 0.0, 1.0]])  # float32
    assert float(angles_between(p, g)) == pytest.approx(degrees, rel=1e-6)


@given(direction, direction, st.floats(1e-3, 1e3))
def test_an_angle_is_symmetric_and_knows_no_length(p, g, length):
    p, g = torch.tensor([p]), torch.tensor([g])
    angle = float(angles_between(p, g))
    assert 0.0 <= angle <= 180.0 + 1e-4
    assert float(angles_between(g, p)) == pytest.approx(angle, abs=1e-4)
    assert float(angles_between(length * p, g)) == pytest.approx(angle, abs=1e-4)
    assert float(angles_between(-p, g)) == pytest.approx(180.0 - angle, abs=1e-3)


def test_a_vector_without_direction_is_a_right_angle_off_and_not_perfect():
    for angles in (angles_between, angles_by_acos):
        assert float(angles(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))) == 90.0


@given(direction, direction)
def test_the_angle_of_published_code_is_the_same_to_a_few_hundredths_of_a_degree(p, g):
    p, g = torch.tensor([p]), torch.nn.functional.normalize(torch.tensor([g]), dim=1)
    assert float(angles_by_acos(p, g)) == pytest.approx(float(angles_between(p, g)), abs=0.07)


def test_the_angle_of_published_code_loses_small_angles():
    """Which is why the default does not take it so."""
    g = torch.tensor([[0.0, 0.0, 1.0]])
    angle = math.radians(0.01)
    p = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]])
    assert float(angles_between(p, g)) == pytest.approx(0.01, rel=1e-6)
    assert float(angles_by_acos(p, g)) != pytest.approx(0.01, rel=0.5)


# -- errors
# ------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_named(kind, value):
    build, make = KINDS[kind]
    prediction, target, _ = make()
    prediction[0, 0, 0, 0] = value
    metric = build()
    with pytest.raises(SimoError, match=f"{kind}: 1 of .* NaN or infinite"):
        metric.update(prediction, target, torch.ones(6, 7, 9, dtype=torch.bool))
    assert metric.valid_pixels == 0


@every_kind
def test_shapes_that_would_broadcast_are_refused_with_both_shapes(kind):
    build, make = KINDS[kind]
    prediction, target, mask = make()
    with pytest.raises(SimoError, match=rf"{kind}: prediction has shape \(6, .*, 7, 9\) and target \(1, "):
        build().update(prediction, target[:1], mask)
    with pytest.raises(SimoError, match=rf"{kind}: mask is torch.bool of shape \(6, 1, 7, 9\)"):
        build().update(prediction, target, mask[:, None])
    with pytest.raises(SimoError, match=rf"{kind}: mask is torch.float32"):
        build().update(prediction, target, mask.float())
    with pytest.raises(SimoError, match=rf"{kind}: prediction has shape \(7, 9\)"):
        build().update(prediction[0, 0], target, mask)


@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
def test_a_prediction_of_another_task_is_refused(kind):
    build, make = KINDS[kind]
    prediction, target, mask = make()
    with pytest.raises(SimoError, match="does the model's decoder belong to this task"):
        build().update(torch.cat([prediction, prediction], dim=1), target, mask)


@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_a_valid_label_that_is_no_class_is_refused(label):
    logits, target, mask = segmentation_batch()
    target[0, 0, 0], mask[0, 0, 0] = label, True
    with pytest.raises(SimoError, match=rf"{label}.*unset the mask"):
        SegmentationMetric(CLASSES).update(logits, target, mask)


def test_labels_must_be_integers():
    logits, target, mask = segmentation_batch()
    with pytest.raises(SimoError, match=r"torch\.float32, expected integers"):
        SegmentationMetric(CLASSES).update(logits, target.float(), mask)
    scored(SegmentationMetric(CLASSES), (logits, target.to(torch.uint8), mask))


def test_metrics_that_count_different_things_do_not_merge():
    for one, other in [
        (SegmentationMetric(3), SegmentationMetric(4)),
        (DepthMetric(), RegressionMetric()),
        (NormalsMetric(), DepthMetric()),
    ]:
        before = copy.deepcopy(one.sums)
        with pytest.raises(SimoError, match="cannot merge"):
            one.merge(other)
        torch.testing.assert_close(one.sums, before)


def test_metrics_that_count_differently_do_not_merge():
    for one, other in [
        (SegmentationMetric(3), SegmentationMetric(3, "zero")),
        (DepthMetric(), DepthMetric(zero_sums=False)),
        (DepthMetric(), DepthMetric(("rmse",))),
        (NormalsMetric(), NormalsMetric(angles=angles_by_acos)),
        (BatchMean(DepthMetric()), BatchMean(DepthMetric(), "images")),
        (BatchMean(DepthMetric()), BatchMean(DepthMetric(zero_sums=False))),
        (BatchMean(DepthMetric()), DepthMetric()),
    ]:
        with pytest.raises(SimoError, match="build both from the same task and protocol"):
            one.merge(other)


@pytest.mark.parametrize("metric", [DepthMetric, NormalsMetric, RegressionMetric])
def test_scores_that_a_metric_does_not_know_are_refused(metric):
    with pytest.raises(SimoError, match=r"scores are \['speed'\], expected some of "):
        metric(("speed",))
    with pytest.raises(SimoError, match=r"scores are \[\], expected some of "):
        metric(())


def test_impossible_settings_are_refused():
    with pytest.raises(SimoError, match="num_classes is 0"):
        SegmentationMetric(0)
    with pytest.raises(SimoError, match="expected one of skip, zero, nan"):
        SegmentationMetric(3, "drop")
