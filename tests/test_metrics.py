"""Metrics against plain versions of themselves, and the ways in which published code got them wrong."""

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
    DepthMetric,
    Metric,
    NormalsMetric,
    RegressionMetric,
    SegmentationMetric,
    angles_between,
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


def test_segmentation_agrees_with_the_jaccard_index_of_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    ours, theirs = SegmentationMetric(CLASSES), MulticlassJaccardIndex(CLASSES, ignore_index=-1)
    for seed in range(3):
        logits, target, mask = segmentation_batch(seed=seed)
        ours.update(logits, target, mask)
        theirs.update(logits, torch.where(mask, target, -1))
    assert ours.compute()["miou"] == pytest.approx(float(theirs.compute()), abs=1e-6)


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


# -- mistakes of published code
# ----------------------------------------------------------------------------------


def one_row(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_miou_is_not_a_mean_over_images():
    """MTAN before November 2020 averaged over images, so a class of few pixels weighs too much."""
    logits, target, mask = segmentation_batch()
    images = [
        scored(SegmentationMetric(CLASSES), tuple(part[[i]] for part in (logits, target, mask))) for i in range(6)
    ]
    pooled = scored(SegmentationMetric(CLASSES), (logits, target, mask))["miou"]
    assert abs(np.mean([image["miou"] for image in images]) - pooled) > 1e-3


def test_each_protocol_treats_an_absent_class_its_way():
    batch = segmentation_batch()
    skip, zero, nan = (scored(SegmentationMetric(CLASSES, absent), batch)["miou"] for absent in ("skip", "zero", "nan"))
    assert zero == pytest.approx(skip * (CLASSES - 1) / CLASSES)
    assert math.isnan(nan)


def test_a_class_that_is_only_predicted_is_not_absent():
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 2]]]), 3).movedim(-1, 1).float()  # (1, 3, 1, 2)
    scores = scored(SegmentationMetric(3), (logits, torch.tensor([[[0, 0]]]), torch.ones(1, 1, 2, dtype=torch.bool)))
    assert scores["miou"] == pytest.approx((0.5 + 0.0) / 2)


def test_small_batches_weigh_no_more_than_their_pixels():
    """MTAN and its heirs average the means, and even the medians, of batches."""
    exact, wrong = one_row([1.0, 1.0, 1.0]), one_row([1.0])
    off, right = one_row([2.0]), torch.ones(1, 1, 3, dtype=torch.bool)
    assert scored(DepthMetric(), (exact, exact, right), (off, wrong, right[..., :1]))["abs"] == pytest.approx(0.25)

    def tilted(degrees: list[float]) -> Tensor:
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[None, :, None]  # (1, 3, 1, N)

    up = tilted([0.0] * 4)
    batches = [
        (tilted(part), up[..., : len(part)], torch.ones(1, 1, len(part), dtype=torch.bool))
        for part in ([1.0, 2.0, 3.0, 50.0], [60.0])
    ]
    scores = scored(NormalsMetric(), *batches)
    assert scores["median"] == pytest.approx(3.0, abs=1e-4)
    assert scores["mean"] == pytest.approx(116.0 / 5, abs=1e-4)


def test_a_median_of_an_even_number_lies_between_the_two_middle_angles():
    """`torch.median` takes the lower one."""
    up, sideways = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    prediction = torch.stack([up, sideways], dim=-1)[None, :, None]  # (1, 3, 1, 2)
    target = up.view(1, 3, 1, 1).expand(1, 3, 1, 2)
    scores = scored(NormalsMetric(), (prediction, target, torch.ones(1, 1, 2, dtype=torch.bool)))
    assert scores["median"] == pytest.approx(45.0)


def test_a_normal_whose_components_sum_to_zero_counts():
    """`sum(gt, 1) != 0` as a mask drops it."""
    normal = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1) / math.sqrt(2)
    metric = NormalsMetric()
    metric.update(normal, normal, torch.ones(1, 1, 1, dtype=torch.bool))
    assert metric.valid_pixels == 1


def test_zero_disparity_counts_where_the_mask_says_so():
    """`gt != 0` as a mask drops it; a relative error does not exist there."""
    prediction, target = one_row([0.1, 1.0]), one_row([0.0, 2.0])
    scores = scored(DepthMetric(), (prediction, target, torch.ones(1, 1, 2, dtype=torch.bool)))
    assert scores["abs"] == pytest.approx(0.55)
    assert scores["rel"] == pytest.approx(0.5)
    assert scores["delta1"] == 0.0


def test_rmse_is_not_the_mean_error():
    """MTL-PyTorch's `NormalsMeter` takes the root of each square before it adds them up."""
    prediction, target = one_row([0.0, 0.0]), one_row([1.0, 3.0])
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    assert scored(DepthMetric(), (prediction, target, mask))["rmse"] == pytest.approx(math.sqrt(5))
    assert scored(RegressionMetric(), (prediction, target, mask))["rmse"] == pytest.approx(math.sqrt(5))


def test_a_depth_of_zero_or_below_is_outside_every_factor():
    prediction, target = one_row([0.0, -1.0, 1.0]), one_row([1.0, 1.0, 1.2])
    scores = scored(DepthMetric(), (prediction, target, torch.ones(1, 1, 3, dtype=torch.bool)))
    assert scores["delta1"] == pytest.approx(1 / 3)


def test_the_factor_of_1_25_itself_is_outside():
    depth = (one_row([1.25]), one_row([1.0]), torch.ones(1, 1, 1, dtype=torch.bool))
    assert scored(DepthMetric(), depth)["delta1"] == 0.0


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
    assert float(angles_between(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))) == 90.0


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


def test_impossible_settings_are_refused():
    with pytest.raises(SimoError, match="num_classes is 0"):
        SegmentationMetric(0)
    with pytest.raises(SimoError, match="expected one of skip, zero, nan"):
        SegmentationMetric(3, "drop")
