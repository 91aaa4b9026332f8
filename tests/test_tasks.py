"""Tasks: what crosses JSON, what makes a prediction valid, what a loss sees, and what a picture shows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pydantic import BaseModel
from torch import Tensor

from simo_merge.colours import MASKED, distinct_colours, magma, turbo
from simo_merge.errors import SimoError
from simo_merge.metrics import PROTOCOLS
from simo_merge.tasks import TASK_KINDS, AnyTask, Depth, Disparity, Normals, Regression, Segmentation, Task, parse_task

NYUV2_CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)

TASKS: list[Task] = [
    Segmentation(classes=NYUV2_CLASSES),
    Depth(),
    Disparity(unit="px@2048", scale=20.0, loss_name="l2"),
    Normals(),
    Normals(name="normals_l1", loss_name="l1"),
    Regression(name="occlusion_edges"),
    Regression(name="reconstruction", channels=3, loss_name="l2", value_range=(0.0, 1.0)),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
MAPS = [task for task in TASKS if not isinstance(task, Segmentation)]
every_map = pytest.mark.parametrize("task", MAPS, ids=lambda task: task.name)


def batch(task: Task, images: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Raw output, target and mask."""
    raw = torch.randn(images, task.out_channels, 6, 8)
    if isinstance(task, Segmentation):
        target = torch.randint(0, task.out_channels, (images, 6, 8))
    else:
        target = task.activate(torch.randn(images, task.out_channels, 6, 8))
    return raw, target, torch.rand(images, 6, 8) > 0.3


# -- values
# ------------------------------------------------------------------------------------------------------


@every_task
def test_a_task_crosses_json_unchanged(task):
    assert parse_task(json.loads(json.dumps(task.model_dump()))) == task
    assert parse_task(json.loads(task.model_dump_json())) == task


def test_every_kind_is_registered_under_its_own_name():
    for kind, build in TASK_KINDS.items():
        assert build.model_fields["kind"].default == kind
    assert {type(task) for task in TASKS} == set(TASK_KINDS.values())


@every_task
def test_another_model_can_hold_any_task(task):
    class Config(BaseModel):
        tasks: list[AnyTask]

    config = Config(tasks=[task])
    assert Config.model_validate_json(config.model_dump_json()).tasks == [task]


@every_task
def test_the_primary_metric_is_one_that_is_measured(task):
    for protocol in PROTOCOLS:
        assert task.primary_under(protocol) in task.metric(protocol).compute()
    assert task.primary == task.primary_under("pooled")
    assert task.metric("mtan").name == task.name


@every_task
def test_an_unknown_protocol_is_refused(task):
    for ask in (task.metric, task.primary_under):
        with pytest.raises(SimoError, match="unknown protocol 'best'; expected one of pooled, "):
            ask("best")


def test_only_intersection_over_union_is_better_when_higher():
    assert {task.kind: task.higher_is_better for task in TASKS} == {
        "segmentation": True,
        "depth": False,
        "disparity": False,
        "normals": False,
        "regression": False,
    }


@every_task
def test_a_task_cannot_change(task):
    with pytest.raises(Exception, match="frozen"):
        task.name = "other"


@every_task
def test_each_metric_starts_empty(task):
    raw, target, mask = batch(task)
    task.metric().update(task.activate(raw), target, mask)
    assert task.metric().valid_pixels == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "pose", "name": "pose"},
            "'pose' has kind 'pose', expected one of segmentation, depth, disparity, normals",
        ),
        ({"name": "pose"}, "kind None"),
        ({"kind": "depth", "nmae": "depth"}, "Depth task, field nmae: Extra inputs"),
        ({"kind": "depth", "name": "a/b"}, "Depth task, field name: .*'a/b'"),
        ({"kind": "depth", "scale": 0}, "field scale: .*greater than 0"),
        ({"kind": "depth", "loss_name": "l3"}, "field loss_name: .*'l1' or 'l2'"),
        ({"kind": "regression"}, "field name: Field required"),
        (
            {"kind": "regression", "name": "edges", "channels": 0},
            "field channels: .*greater than or equal to 1",
        ),
        ({"kind": "regression", "name": "edges", "value_range": [1, 0]}, "edges: value_range"),
        ({"kind": "segmentation"}, "field classes: Field required"),
        ({"kind": "segmentation", "classes": []}, "no classes"),
        (
            {"kind": "segmentation", "classes": ["wall", "bed", "wall"]},
            r"class names \['wall'\] occur more than once",
        ),
        ({"kind": "segmentation", "classes": ["a", "b"], "palette": [[0, 0, 0]]}, "1 colours, expected 2"),
        (
            {"kind": "segmentation", "classes": ["a"], "palette": [[0, 0, 256]]},
            r"\(0, 0, 256\), expected values 0..255",
        ),
    ],
)
def test_a_wrong_description_is_one_readable_line(values, message):
    with pytest.raises(SimoError, match=message) as caught:
        parse_task(values)
    assert "\n" not in str(caught.value)


# -- activations
# -------------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_are_float32_of_the_same_shape(task, dtype):
    raw = batch(task)[0].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = task.activate(raw)
    assert prediction.dtype == torch.float32
    assert prediction.shape == raw.shape


def test_a_raw_depth_of_zero_is_the_scale():
    zero = torch.zeros(1, 1, 1, 1)
    assert float(Depth().activate(zero)) == pytest.approx(1.0)
    assert float(Depth(scale=2.5).activate(zero)) == pytest.approx(2.5)


@given(st.floats(-50, 1e4))
def test_depth_is_positive(raw):
    assert float(Depth().activate(torch.full((1, 1, 1, 1), raw))) > 0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3).filter(lambda v: math.hypot(*v) > 1e-4))
def test_normals_have_unit_length(vector):
    normal = Normals().activate(torch.tensor(vector).view(1, 3, 1, 1))
    assert float(normal.norm()) == pytest.approx(1.0, abs=1e-5)


def test_a_vector_of_length_zero_stays_finite_with_a_finite_gradient():
    raw = torch.zeros(1, 3, 1, 1, requires_grad=True)
    prediction = Normals().activate(raw)
    prediction.sum().backward()
    assert prediction.isfinite().all()
    assert raw.grad is not None
    assert raw.grad.abs().max() < 2e6


# -- losses
# ------------------------------------------------------------------------------------------------------


def plain_loss(task: Task, prediction: Tensor, target: Tensor, mask: Tensor) -> float:
    losses = []
    for b, i, j in mask.nonzero().tolist():
        p = prediction[b, :, i, j].double()
        if isinstance(task, Segmentation):
            losses.append(float(-p.log_softmax(0)[target[b, i, j]]))
            continue
        g = target[b, :, i, j].double()
        loss_name = getattr(task, "loss_name", "")
        losses.append(
            float(1 - p @ g)
            if loss_name == "cosine"
            else float((p - g).abs().mean())
            if loss_name == "l1"
            else float((p - g).square().mean())
        )
    return float(np.mean(losses))


@every_task
def test_the_loss_is_the_mean_over_valid_pixels_of_the_batch(task):
    raw, target, mask = batch(task)
    prediction = task.activate(raw)
    expected = plain_loss(task, prediction, target, mask)
    assert task.loss(prediction, target, mask).item() == pytest.approx(expected, rel=1e-5)


@every_task
def test_labels_under_an_unset_mask_reach_neither_loss_nor_gradient(task):
    raw, target, mask = batch(task)
    if isinstance(task, Segmentation):
        hidden = torch.where(mask, target, 255)
    else:
        hidden = torch.where(mask[:, None], target, math.nan)
    gradients = []
    for labels in (target, hidden):
        leaf = raw.clone().requires_grad_()
        loss = task.loss(task.activate(leaf), labels, mask)
        loss.backward()
        gradients.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0][1].movedim(1, -1)[~mask] == 0).all()


@every_task
def test_without_a_valid_pixel_the_loss_is_zero_and_differentiable(task):
    raw, target, mask = batch(task)
    raw.requires_grad_()
    loss = task.loss(task.activate(raw), target, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0.0
    assert (raw.grad == 0).all()


@every_task
def test_under_autocast_the_loss_is_computed_in_float32(task):
    raw, target, mask = batch(task)
    raw = raw.bfloat16()
    expected = task.loss(task.activate(raw.float()), target, mask)
    leaf = raw.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(task.activate(leaf), target, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected)
    assert task.loss(task.activate(raw).bfloat16(), target, mask).dtype == torch.float32
    assert leaf.grad.isfinite().all()


@every_task
def test_a_perfect_prediction_has_no_loss(task):
    _, target, mask = batch(task)
    if isinstance(task, Segmentation):
        perfect = 100.0 * torch.nn.functional.one_hot(target, task.out_channels).movedim(-1, 1)
    else:
        perfect = target
    assert float(task.loss(perfect, target, mask)) == pytest.approx(0.0, abs=1e-6)


@every_task
def test_a_loss_refuses_shapes_that_would_broadcast(task):
    raw, target, mask = batch(task)
    prediction = task.activate(raw)
    with pytest.raises(SimoError, match=f"{task.name}: prediction has shape .* and target"):
        task.loss(prediction, target[:1], mask)
    with pytest.raises(SimoError, match=f"{task.name}: mask is"):
        task.loss(prediction, target, mask[:, None])
    with pytest.raises(SimoError, match="decoder belong to this task"):
        task.loss(torch.cat([prediction, prediction], dim=1), target, mask)


# -- pictures
# ----------------------------------------------------------------------------------------------------


@every_task
def test_predictions_and_targets_can_be_drawn(task):
    raw, target, mask = batch(task)
    for values in (task.activate(raw)[0], target[0], task.activate(raw)[0].bfloat16()):
        picture = task.draw(values, mask[0])
        assert picture.shape == (6, 8, 3)
        assert picture.dtype == np.uint8
        assert (picture[~mask[0].numpy()] == MASKED).all()
        assert not (picture[mask[0].numpy()] == MASKED).all(axis=-1).any()


@every_task
def test_a_prediction_that_equals_its_target_looks_like_it(task):
    _, target, mask = batch(task)
    prediction = target[0]
    if isinstance(task, Segmentation):
        prediction = torch.nn.functional.one_hot(target[0], task.out_channels).movedim(-1, 0).float()
    np.testing.assert_array_equal(task.draw(prediction, mask[0]), task.draw(target[0], mask[0]))


@every_task
def test_with_nothing_valid_the_picture_is_grey(task):
    _, target, mask = batch(task)
    assert (task.draw(target[0], torch.zeros_like(mask[0])) == MASKED).all()


@every_map
def test_values_that_are_not_finite_are_drawn_as_masked(task):
    _, target, _ = batch(task)
    target[0, 0, 2, 3] = math.nan
    assert tuple(task.draw(target[0])[2, 3]) == MASKED


def test_a_class_has_the_colour_of_the_palette():
    task = Segmentation(classes=("wall", "floor"), palette=((1, 2, 3), (4, 5, 6)))
    assert task.draw(torch.tensor([[0, 1]])).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_near_is_red_and_far_is_blue():
    near, far = Depth().draw(torch.tensor([[1.0, 9.0]]), limits=(1.0, 9.0))[0].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]


def test_a_large_disparity_is_near_and_red():
    far, near = Disparity().draw(torch.tensor([[1.0, 9.0]]), limits=(1.0, 9.0))[0].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]


def test_a_prediction_is_drawn_on_the_scale_of_its_target_if_asked():
    task = Depth()
    target = torch.linspace(1.0, 5.0, 48).view(1, 6, 8)
    limits = task.limits(target)
    assert limits == pytest.approx(np.percentile(target.numpy(), (2, 98)))
    assert (task.draw(target + 10.0, limits=limits) == task.draw(torch.full_like(target, 99.0), limits=limits)).all()


def test_limits_leave_masked_values_out():
    values, mask = torch.tensor([[1.0, 2.0, 1e6]]), torch.tensor([[True, True, False]])
    low, high = Depth().limits(values, mask)
    assert 1.0 <= low < high <= 2.0
    assert Regression(name="edges", value_range=(-1.0, 1.0)).limits(values, mask) == (-1.0, 1.0)
    assert Normals().limits(torch.zeros(3, 1, 3)) is None


def test_a_constant_map_can_be_drawn():
    assert Depth().draw(torch.full((1, 4, 4), 2.0)).std(axis=(0, 1)).max() == 0


def test_normals_have_their_usual_colours():
    towards_viewer = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    assert Normals().draw(towards_viewer)[0, 0].tolist() == [128, 128, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_maps_of_any_number_of_channels_can_be_drawn(channels):
    task = Regression(name="features", channels=channels)
    assert task.draw(torch.rand(channels, 4, 5)).shape == (4, 5, 3)


def test_an_image_is_drawn_as_itself():
    image = torch.rand(3, 4, 5)
    picture = Regression(name="reconstruction", channels=3, value_range=(0.0, 1.0)).draw(image)
    np.testing.assert_array_equal(picture, np.rint(image.permute(1, 2, 0).numpy() * 255.0))


@every_task
def test_what_cannot_be_drawn_is_refused(task):
    values = torch.zeros(task.out_channels, 6, 8)
    with pytest.raises(SimoError, match=f"{task.name}: cannot draw shape"):
        task.draw(values[None])
    with pytest.raises(SimoError, match=rf"{task.name}: cannot draw with a mask of shape \(3, 4\)"):
        task.draw(values, torch.ones(3, 4, dtype=torch.bool))


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(SimoError, match="expected the lower one first"):
        Depth().draw(torch.ones(1, 4, 4), limits=(2.0, 1.0))


def test_a_class_index_without_a_class_is_refused_unless_masked():
    task, labels = Segmentation(classes=("wall", "floor")), torch.tensor([[0, 255]])
    with pytest.raises(SimoError, match="run from 0 to 255"):
        task.draw(labels)
    assert tuple(task.draw(labels, torch.tensor([[True, False]]))[0, 1]) == MASKED


# -- colours
# -----------------------------------------------------------------------------------------------------


def lab(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """CIE L*a*b* by the colour management of Pillow, to the nearest unit: (N, 3)."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(Image.fromarray(np.array([colours], dtype=np.uint8)), to_lab)
    lightness, a, b = (np.frombuffer(band.tobytes(), np.uint8) for band in image.split())
    return np.stack([lightness / 2.55, a.astype(np.int8), b.astype(np.int8)], axis=-1)


@pytest.mark.parametrize(("count", "apart"), [(13, 30), (19, 30), (40, 25), (150, 15)])
def test_class_colours_are_far_apart_and_far_from_masked_grey(count, apart):
    """A difference of 10 in CIE L*a*b* is seen at a glance."""
    places = lab([*distinct_colours(count), MASKED])
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(count + 1, 1)]
    assert distances.min() >= apart


@given(st.integers(1, 60), st.integers(1, 60))
def test_more_classes_extend_the_colours_of_fewer(few, many):
    few, many = sorted((few, many))
    assert distinct_colours(many)[:few] == distinct_colours(few)


@pytest.mark.parametrize(("ours", "name"), [(turbo, "turbo"), (magma, "magma")])
def test_colour_maps_are_those_of_matplotlib(ours, name):
    import matplotlib

    expected = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
    assert np.abs(ours(np.linspace(0.0, 1.0, 256)) - expected).max() <= 3
