"""Mistakes of published code: none of them here, or only where a protocol must repeat it, and then on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.metrics import (
    PROTOCOLS,
    DepthMetric,
    Metric,
    NormalsMetric,
    RegressionMetric,
    delta_eq2,
    delta_ratio,
)
from tests.metrics.batches import CHANNELS, CLASSES, Split, metric, scored, split

every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
every_kind = pytest.mark.parametrize("kind", CHANNELS)


def one_row(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def all_valid(image: Tensor) -> Tensor:
    return torch.ones(image.shape[0], *image.shape[2:], dtype=torch.bool)


def alone(metric: Metric, prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Scores of one batch in which every pixel is valid."""
    metric.update(prediction, target, all_valid(prediction))
    return metric.compute()


def tilted(degrees: list[float]) -> Tensor:
    """Unit vectors so far from (0, 0, 1), as one row of pixels (1, 3, 1, N)."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[None, :, None]


# -- what is averaged over what ---------------------------------------------------------------------------------


@every_protocol
def test_miou_is_not_a_mean_over_images(protocol):
    """MTAN was until November 2020, and torchmetrics' `MeanIoU` is: a class of few pixels weighs too much there."""
    data = split("segmentation")
    images = [scored(protocol, "segmentation", Split(*batch))["miou"] for batch in data.batches(1)]
    pooled = scored(protocol, "segmentation", data)["miou"]
    assert abs(np.nanmean(images) - pooled) > 1e-3


@every_kind
def test_pooled_scores_do_not_depend_on_the_batch_size(kind):
    data = split(kind)
    whole = scored("pooled", kind, data, len(data))
    for batch_size in (1, 2, 4):
        assert scored("pooled", kind, data, batch_size) == pytest.approx(whole, rel=1e-12)


def test_small_batches_weigh_no_more_than_their_pixels():
    """Under `mtan` a last batch of one pixel weighs as much as a full one, by definition."""
    exact, off, right = one_row([1.0, 1.0, 1.0]), one_row([2.0]), one_row([1.0])
    for protocol, wanted in [("pooled", 0.25), ("libmtl", 0.25), ("mtan", 0.5)]:
        found = metric(protocol, "depth")
        found.update(exact, exact, all_valid(exact))
        found.update(off, right, all_valid(right))
        assert found.compute()["abs"] == pytest.approx(wanted)


def test_a_median_is_no_mean_of_medians():
    up = tilted([0.0] * 4)
    batches = [(tilted(part), up[..., : len(part)]) for part in ([1.0, 2.0, 3.0, 50.0], [60.0])]
    for protocol, median, mean in [("pooled", 3.0, 116 / 5), ("libmtl", 3.0, 116 / 5), ("mtan", 31.25, 37.0)]:
        found = metric(protocol, "normals")
        for prediction, target in batches:
            found.update(prediction, target, all_valid(target))
        assert found.compute()["median"] == pytest.approx(median, abs=1e-4)
        assert found.compute()["mean"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("protocol", ["pooled", "libmtl", "astmt"])
def test_a_median_of_an_even_number_lies_between_the_two_middle_angles(protocol):
    """`torch.median` takes the lower one, as fusion_bench does."""
    found = alone(metric(protocol, "normals"), tilted([0.0, 90.0]), tilted([0.0, 0.0]))
    assert found["median"] == pytest.approx(45.0)


# -- what counts as a label -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "pixels"), [("pooled", 2), ("astmt", 2), ("libmtl", 1), ("mtan", 1), ("simo", 1)])
def test_a_valid_normal_whose_components_sum_to_0_counts(protocol, pixels):
    """`sum(gt, 1) != 0` as a mask drops it; the protocols that are defined by that mask still do."""
    normals = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.6, 0.8]]).T.view(1, 3, 1, 2)
    normals = normals / normals.norm(dim=1, keepdim=True)
    found = metric(protocol, "normals")
    found.update(normals, normals, all_valid(normals))
    assert found.valid_pixels == pixels


@pytest.mark.parametrize(("protocol", "wanted"), [("pooled", 0.55), ("libmtl", 1.0), ("mtan", 1.0), ("simo", 1.0)])
def test_a_disparity_of_0_counts_where_the_mask_says_so(protocol, wanted):
    found = alone(metric(protocol, "disparity"), one_row([0.1, 1.0]), one_row([0.0, 2.0]))
    assert found["abs"] == pytest.approx(wanted)


def test_relative_errors_are_means_over_labels_above_0():
    found = alone(DepthMetric(("rel", "delta1", "log_rmse")), one_row([0.1, 1.0]), one_row([0.0, 2.0]))
    assert found == pytest.approx({"rel": 0.5, "delta1": 0.0, "log_rmse": math.log(2)})


@every_kind
@every_protocol
@pytest.mark.parametrize("sentinel", [-1, 0, 255, math.nan])
def test_a_sentinel_under_an_unset_mask_cannot_leak(protocol, kind, sentinel):
    """−1 for padded disparity sums to something other than 0, and log(gt) of it is NaN before it is masked."""
    data = split(kind)
    if kind == "segmentation":
        target = torch.where(data.mask, data.target, -100 if math.isnan(sentinel) else sentinel)
    else:
        target = torch.where(data.mask[:, None], data.target, sentinel)
    filled = Split(data.prediction, target, data.mask)
    assert scored(protocol, kind, filled) == scored(protocol, kind, data)


@every_kind
@every_protocol
def test_a_prediction_under_an_unset_mask_cannot_leak(protocol, kind):
    data = split(kind)
    hidden = torch.where(data.mask[:, None], data.prediction, math.nan)
    assert scored(protocol, kind, Split(hidden, data.target, data.mask)) == scored(protocol, kind, data)


def test_a_depth_of_0_is_no_label_under_astmt_and_none_of_1e_9_either():
    """ASTMT's own code sets 0 to 1e-9 first and masks `label != 0` then, so nothing is masked."""
    depth = alone(metric("astmt", "depth"), one_row([1.0, 1.0]), one_row([0.0, 2.0]))
    assert depth == pytest.approx({"rmse": 1.0, "log_rmse": math.log(2)})


@every_protocol
def test_every_protocol_refuses_a_valid_label_that_is_no_class(protocol):
    """Elsewhere `0 <= gt < n` hides a wrong conversion of labels."""
    data = split("segmentation")
    data.target[0, 0, 0], data.mask[0, 0, 0] = CLASSES, True
    with pytest.raises(SimoError, match="unset the mask"):
        scored(protocol, "segmentation", data)


# -- batches without labels -------------------------------------------------------------------------------------


@every_kind
@every_protocol
def test_a_batch_without_a_valid_pixel_poisons_nothing(protocol, kind):
    """MTAN, LibMTL, SIMO and fusion_bench divide 0 by 0 and carry the NaN to the end of the epoch."""
    data = split(kind)
    empty = torch.zeros_like(data.mask[:2])
    found = metric(protocol, kind)
    found.update(data.prediction[:2], data.target[:2], empty)
    for batch in data.batches(3):
        found.update(*batch)
    assert found.compute() == scored(protocol, kind, data, 3)


@every_kind
@every_protocol
def test_a_split_without_a_valid_pixel_is_unmeasured(protocol, kind):
    data = split(kind)
    data.mask[:] = False
    assert all(math.isnan(value) for value in metric(protocol, kind).compute().values())
    assert all(math.isnan(value) for value in scored(protocol, kind, data).values())


def test_an_image_without_labels_still_counts_as_an_image_of_its_batch_under_simo():
    """Its running mean weighs a batch by its images, labelled or not."""
    data = split("depth", images=3)
    data.mask[1] = False
    first = scored("simo", "depth", Split(data.prediction[:1], data.target[:1], data.mask[:1]))["abs"]
    last = scored("simo", "depth", Split(data.prediction[2:], data.target[2:], data.mask[2:]))["abs"]
    assert scored("simo", "depth", data, 2)["abs"] == pytest.approx((2 * first + last) / 3)


# -- what a score is --------------------------------------------------------------------------------------------


def test_rmse_is_the_root_of_the_mean_square():
    """MTL-PyTorch's `NormalsMeter` adds up √(x²) and then reports the mean angle under the name rmse."""
    prediction, target = one_row([0.0, 0.0]), one_row([1.0, 3.0])
    assert alone(DepthMetric(), prediction, target)["rmse"] == pytest.approx(math.sqrt(5))
    assert alone(RegressionMetric(), prediction, target)["rmse"] == pytest.approx(math.sqrt(5))
    found = alone(metric("astmt", "normals"), tilted([10.0, 30.0]), tilted([0.0, 0.0]))
    assert (found["mean"], found["rmse"]) == pytest.approx((20.0, math.sqrt(500)), rel=1e-4)


def test_rmse_is_no_mean_of_the_rmse_of_images():
    """ASTMT's own code takes it so; the tables since are pooled."""
    data = split("depth")
    images = [scored("astmt", "depth", Split(*batch))["rmse"] for batch in data.batches(1)]
    assert abs(np.mean(images) - scored("astmt", "depth", data)["rmse"]) > 1e-3


def test_a_new_metric_has_forgotten_the_last_split():
    """MTL-PyTorch's `DepthMeter.reset` leaves its totals as they are."""
    for protocol in PROTOCOLS:
        for kind in CHANNELS:
            scored(protocol, kind, split(kind))
            assert metric(protocol, kind).valid_pixels == 0


def test_a_depth_of_zero_or_below_is_outside_every_factor():
    prediction, target = one_row([0.0, -1.0, 1.0]), one_row([1.0, 1.0, 1.2])
    assert alone(DepthMetric(), prediction, target)["delta1"] == pytest.approx(1 / 3)


def test_the_factor_of_1_25_itself_is_outside():
    assert alone(DepthMetric(), one_row([1.25]), one_row([1.0]))["delta1"] == 0.0


@pytest.mark.parametrize("protocol", ["pooled", "simo"])
def test_a_class_that_is_only_predicted_is_not_absent(protocol):
    data = split("segmentation")
    data.target[data.target == 3] = 0
    data.prediction[:, 3] = -50.0
    absent = scored(protocol, "segmentation", data)["miou"]
    data.prediction[0, 3][data.mask[0]] = 50.0
    found = metric(protocol, "segmentation")
    for batch in data.batches(3):
        found.update(*batch)
    ious = found.per_class()
    assert ious[3] == 0
    assert found.compute()["miou"] == pytest.approx(float(ious.mean()))
    assert found.compute()["miou"] < absent * 0.8


@every_protocol
def test_maps_of_another_size_are_refused(protocol):
    """MTL-PyTorch resizes here, with sizes that `cv2.resize` does not take for normals."""
    data = split("normals")
    with pytest.raises(SimoError, match="resize one to the other"):
        metric(protocol, "normals").update(data.prediction[..., :4], data.target, data.mask)


def test_vectors_of_another_length_have_the_same_angle():
    data = split("normals")
    longer = Split(3.0 * data.prediction, data.target, data.mask)
    for protocol in PROTOCOLS:
        assert scored(protocol, "normals", longer) == pytest.approx(scored(protocol, "normals", data), rel=1e-5)


def test_angles_are_accurate_near_0():
    """acos(clamp(p·g)) in float32 is not."""
    found = alone(NormalsMetric(), tilted([0.005]), tilted([0.0]))
    assert found["mean"] == pytest.approx(0.005, rel=1e-4)


# -- delta ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [delta_ratio, delta_eq2])
def test_delta_is_a_mean_over_the_tasks_that_were_scored(delta):
    """auto-lambda and SIMO divide by the number of tasks of the data set, whichever were trained."""
    directions = {"segmentation": True, "depth": False, "normals": False}
    half = delta({"segmentation": 0.3}, {"segmentation": 0.6}, directions)
    assert half == pytest.approx(-50.0)
