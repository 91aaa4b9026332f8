"""Every protocol against a plain version of what the published code computes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.metrics import PROTOCOLS, BatchMean, DepthMetric, find_protocol, protocol_of_label
from simo_merge.tasks import TASK_KINDS
from tests.metrics.batches import CHANNELS, CLASSES, Split, metric, scored, split

every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
every_kind = pytest.mark.parametrize("kind", CHANNELS)
BY_BATCH = ("mtan", "simo")
ANGLES = ("mean", "median", "within_11.25", "within_22.5", "within_30")


# -- the registry -----------------------------------------------------------------------------------------------


def test_an_unknown_protocol_is_answered_with_the_known_ones():
    with pytest.raises(SimoError, match="unknown protocol 'best'; expected one of pooled, mtan, libmtl, astmt, simo"):
        find_protocol("best")
    with pytest.raises(SimoError, match="unknown protocol 'mtan@8'"):
        find_protocol("mtan@8")  # a batch size in the name would be ignored: it is given beside it


@every_protocol
def test_every_kind_of_task_is_measured_under_every_protocol_by_its_first_score(protocol):
    assert find_protocol(protocol).name == protocol
    assert set(find_protocol(protocol).measures) == set(TASK_KINDS) == set(CHANNELS)
    for kind in CHANNELS:
        assert next(iter(scored(protocol, kind, split(kind)))) == find_protocol(protocol).measure(kind).primary


def test_the_scores_of_each_protocol_are_those_that_its_code_reports():
    found = {name: {kind: list(metric(name, kind).compute()) for kind in CHANNELS} for name in PROTOCOLS}
    miou = ["miou", "pixel_accuracy"]
    depth = {"pooled": ["abs", "rel", "rmse", "delta1"], "astmt": ["rmse", "log_rmse"], "simo": ["abs"]}
    normals = {"astmt": [*ANGLES, "rmse"], "simo": ["mean"]}
    regression = {"pooled": ["abs", "rmse"], "astmt": ["rmse"]}
    for name, kinds in found.items():
        of_depth = depth.get(name, ["abs", "rel"])
        assert kinds == {
            "segmentation": miou,
            "depth": of_depth,
            "disparity": of_depth,
            "normals": normals.get(name, list(ANGLES)),
            "regression": regression.get(name, ["abs"]),
        }


def test_a_kind_that_a_protocol_does_not_know_is_refused():
    with pytest.raises(SimoError, match="protocol simo does not say how a task of kind 'pose' is measured, only seg"):
        find_protocol("simo").measure("pose")


@every_protocol
def test_a_label_has_the_batch_size_only_where_it_is_part_of_the_result(protocol):
    label = find_protocol(protocol).label(8)
    assert label == (f"{protocol}@8" if protocol in BY_BATCH else protocol)
    assert protocol_of_label(label) is find_protocol(protocol)


@every_kind
@every_protocol
def test_exactly_the_protocols_that_say_so_depend_on_the_batch_size(protocol, kind):
    data = split(kind)
    one, three = scored(protocol, kind, data, 1), scored(protocol, kind, data, 3)
    by_batch = find_protocol(protocol).by_batch and kind != "segmentation"
    assert (one == pytest.approx(three, rel=1e-9)) != by_batch
    assert find_protocol(protocol).by_batch == (protocol in BY_BATCH)


@every_kind
@every_protocol
def test_batches_of_several_workers_add_up(protocol, kind):
    data = split(kind)
    workers = [metric(protocol, kind), metric(protocol, kind)]
    for index, batch in enumerate(data.batches(2)):
        workers[index % 2].update(*batch)
    together = metric(protocol, kind)
    for worker in workers:
        together.merge(pickle.loads(pickle.dumps(worker)))  # as all_gather_object does
    assert together.compute() == pytest.approx(scored(protocol, kind, data, 2), rel=1e-12)
    assert together.valid_pixels == int(data.mask.sum())


@every_kind
@every_protocol
def test_half_precision_predictions_are_measured_in_full_precision(protocol, kind):
    data = split(kind)
    halved = Split(data.prediction.bfloat16(), data.target, data.mask)
    full = Split(halved.prediction.float(), data.target, data.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = scored(protocol, kind, halved)
    assert under_autocast == pytest.approx(scored(protocol, kind, full), rel=1e-6)


# -- plain versions of published code ---------------------------------------------------------------------------


def pixels(data: Split, zero_sums: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prediction and target of the pixels that count, (n, C) each, image by image."""
    found = []
    for prediction, target, mask in zip(data.prediction, data.target, data.mask, strict=True):
        keep = mask if zero_sums else mask & (target.sum(dim=0) != 0)
        found.append((prediction[:, keep].T.double().numpy(), target[:, keep].T.double().numpy()))
    return found


def together(images: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    predictions, targets = zip(*images, strict=True)
    return np.concatenate(predictions), np.concatenate(targets)


def depth_errors(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    p, g = together(images)
    return {"abs": np.mean(np.abs(p - g)), "rel": np.mean(np.abs(p - g) / g)}


def angle_errors(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    p, g = together(images)
    angles = np.degrees(np.arccos(np.clip((p * g).sum(axis=1), -1, 1)))
    values = (angles.mean(), np.median(angles), *((angles < limit).mean() for limit in (11.25, 22.5, 30)))
    return dict(zip(ANGLES, values, strict=True))


def ious(data: Split) -> np.ndarray:
    predicted, labels = data.prediction.argmax(1)[data.mask].numpy(), data.target[data.mask].numpy()
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (labels, predicted), 1)
    with np.errstate(invalid="ignore"):
        return np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))


def mean_over_batches(errors, images, size, weights):
    """MTAN: Σ_b s_b / batches; with weights, Σ_b w_b s_b / Σ_b w_b."""
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    scores = [errors(part) for part in parts]
    return {key: np.average([score[key] for score in scores], weights=weights(parts)) for key in scores[0]}


def equally(parts):
    return None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize(("kind", "errors"), [("depth", depth_errors), ("normals", angle_errors)])
def test_mtan_averages_the_means_and_medians_of_batches(kind, errors, batch_size):
    data = split(kind)
    plain = mean_over_batches(errors, pixels(data, zero_sums=False), batch_size, equally)
    assert scored("mtan", kind, data, batch_size) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(("kind", "errors"), [("depth", depth_errors), ("normals", angle_errors)])
def test_libmtl_pools_what_mtan_averages(kind, errors):
    data = split(kind)
    plain = errors(pixels(data, zero_sums=False))
    assert scored("libmtl", kind, data) == pytest.approx(plain, rel=1e-6)
    assert scored("mtan", kind, data, len(data)) == pytest.approx(plain, rel=1e-6)  # one batch of all


def test_libmtl_weighs_the_means_of_batches_by_their_valid_pixels():
    data = split("depth")
    images = pixels(data, zero_sums=False)
    plain = mean_over_batches(depth_errors, images, 2, lambda parts: [sum(len(p) for p, _ in part) for part in parts])
    assert scored("libmtl", "depth", data, 2) == pytest.approx(plain, rel=1e-6)


def running_mean(scores: list[float], images: list[int], batch_size: int) -> float:
    """SIMO's update: r = k/(k + b/B), m <- r m + (1 − r) s, for batch k of b images."""
    mean = 0.0
    for k, (score, count) in enumerate(zip(scores, images, strict=True)):
        r = k / (k + count / batch_size)
        mean = r * mean + (1 - r) * score
    return mean


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize(
    ("kind", "errors", "score"), [("depth", depth_errors, "abs"), ("normals", angle_errors, "mean")]
)
def test_simo_keeps_a_running_mean_in_which_a_batch_weighs_as_its_images(kind, errors, score, batch_size):
    data = split(kind)
    images = pixels(data, zero_sums=False)
    parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    plain = running_mean([errors(part)[score] for part in parts], [len(part) for part in parts], batch_size)
    assert scored("simo", kind, data, batch_size) == pytest.approx({score: plain}, rel=1e-6)


def test_simo_takes_the_error_of_other_maps_from_the_mask_alone():
    """Its edges and keypoints come with a mask, and 0 is a value there."""
    data = split("regression")
    data.target[:, :, :2] = 0.0
    images = pixels(data, zero_sums=True)
    parts = [together(images[start : start + 2]) for start in range(0, len(images), 2)]
    plain = running_mean([np.abs(p - g).mean() for p, g in parts], [2, 2, 2, 1], 2)
    assert scored("simo", "regression", data, 2) == pytest.approx({"abs": plain}, rel=1e-6)


def test_astmt_pools_squares_and_takes_the_root_at_the_end():
    data = split("depth")
    p, g = together(pixels(data, zero_sums=False))
    plain = {"rmse": np.sqrt(np.mean((p - g) ** 2)), "log_rmse": np.sqrt(np.mean((np.log(g) - np.log(p)) ** 2))}
    assert scored("astmt", "depth", data) == pytest.approx(plain)


def test_astmt_pools_angles():
    data = split("normals")
    p, g = together(pixels(data, zero_sums=True))
    angles = np.degrees(np.arccos(np.clip((p * g).sum(axis=1), -1, 1)))
    plain = angle_errors(pixels(data, zero_sums=True)) | {"rmse": np.sqrt(np.mean(angles**2))}
    assert scored("astmt", "normals", data) == pytest.approx(plain, rel=1e-6)


@every_protocol
def test_every_protocol_pools_the_confusion_matrix(protocol):
    data = split("segmentation")
    assert scored(protocol, "segmentation", data)["miou"] == pytest.approx(ious(data).mean())


@pytest.mark.parametrize(
    ("protocol", "counts"),
    [("pooled", "skip"), ("simo", "skip"), ("astmt", "zero"), ("mtan", "nan"), ("libmtl", "nan")],
)
def test_a_class_that_does_not_occur_counts_as_in_the_published_code(protocol, counts):
    data = split("segmentation")
    data.target[data.target == 3] = 0
    data.prediction[:, 3] = -50.0
    found = ious(data)
    assert np.isnan(found).tolist() == [False, False, False, True]
    wanted = {"skip": np.nanmean(found), "zero": np.nan_to_num(found).mean(), "nan": math.nan}[counts]
    assert scored(protocol, "segmentation", data)["miou"] == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("kind", ["depth", "normals", "regression"])
def test_one_image_of_full_validity_has_the_same_primary_score_under_all_that_share_its_metric(kind):
    """The protocols differ in how they weigh pixels; with one batch and nothing missing there is nothing to weigh."""
    data = split(kind, images=1)
    data.mask[:] = True
    names = [name for name in PROTOCOLS if find_protocol(name).measure(kind).primary != "rmse"]
    found = [scored(name, kind, data)[find_protocol(name).measure(kind).primary] for name in names]
    assert len(names) >= 4
    assert found == pytest.approx([found[0]] * len(found), rel=1e-6)


# -- means over batches -----------------------------------------------------------------------------------------


def test_a_mean_over_batches_leaves_the_metric_that_it_was_given_alone():
    given = DepthMetric()
    mean = BatchMean(given)
    data = split("depth")
    for batch in data.batches(2):
        mean.update(*batch)
        given.update(*batch)
    before = mean.compute()
    given.update(*next(data.batches(2)))
    assert mean.compute() == before
    assert mean.valid_pixels == int(data.mask.sum())


def test_every_score_of_a_batch_is_averaged():
    data = split("depth")
    mean = BatchMean(DepthMetric())
    singles = []
    for batch in data.batches(1):
        mean.update(*batch)
        one = DepthMetric()
        one.update(*batch)
        singles.append(one.compute())
    assert mean.compute() == pytest.approx({key: np.mean([one[key] for one in singles]) for key in singles[0]})
