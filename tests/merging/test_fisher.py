"""Fisher merging: the information against explicit gradients and known distributions, the merge against its formula."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MergeData, merge
from simo_merge.merging.from_images.fisher import Fisher, surprise
from simo_merge.models import SingleTaskModel
from simo_merge.tasks import Regression, Segmentation
from tests.merging.reached import given, merged_by, state
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of


@pytest.fixture
def data() -> MergeData:
    return given(images=3)


def slow_information(expert: SingleTaskModel, data: MergeData, count: int, labels: bool) -> dict[str, Tensor]:
    model = copy.deepcopy(expert)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.encoder.vit.named_parameters()}
    generator = torch.Generator().manual_seed(data.seed)
    task = expert.task
    for i in range(count):
        sample = data.images[i]
        prediction = model(sample.image[None])
        if labels:
            mask = sample.masks[task.name][None]
            loss = task.loss(prediction, sample.targets[task.name][None], mask) * mask.sum()
        else:
            loss = surprise(task, prediction, generator)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.encoder.vit.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.double() ** 2 / count
    return total


@pytest.mark.parametrize("source", ["predictions", "labels"])
def test_the_information_is_the_mean_square_of_one_gradient_an_image(data: MergeData, source: str) -> None:
    method = Fisher(source, images=2)  # type: ignore[arg-type]
    for expert in data.experts:
        found = method.information(expert, data)
        expected = slow_information(expert, data, 2, source == "labels")
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-9 + 1e-6 * float(value.max())), name


@pytest.mark.parametrize("normalise", [True, False])
def test_the_merge_is_the_mean_weighted_by_information(data: MergeData, normalise: bool) -> None:
    found = merged_by(Fisher(normalise=normalise, floor=1e-4), data)
    weights = []
    for expert in data.experts:
        information = slow_information(expert, data, 3, labels=False)
        everything = torch.cat([value.flatten() for value in information.values()])
        size = everything.square().mean().sqrt() if normalise else 1.0
        weights.append({n: (v / size).clamp(min=1e-4) for n, v in information.items()})
    for name in weights[0]:
        pairs = [(w[name], state(e)[name].double()) for w, e in zip(weights, data.experts, strict=True)]
        expected = sum(w * theta for w, theta in pairs) / sum(w for w, _ in pairs)
        assert torch.allclose(found[name].double(), expected, atol=2e-4), name


def test_what_no_prediction_depends_on_is_averaged(data: MergeData) -> None:
    found = merged_by(Fisher(), data)
    for name in ("norm.weight", "norm.bias"):  # after the last tap
        assert torch.allclose(found[name], sum(state(e)[name] for e in data.experts) / 3, atol=1e-6)


def test_a_task_that_depends_on_a_weight_more_has_more_of_a_say() -> None:
    data = given(images=2, tasks=(DEPTH, NORMALS))
    for expert in data.experts[1:]:
        for parameter in expert.decoder.parameters():
            parameter.data.zero_()  # predicts the same whatever the features
    found = merged_by(Fisher(), data)
    ours, theirs = state(data.experts[0]), state(data.experts[1])
    name = "blocks.0.mlp.fc2.weight"
    assert torch.linalg.norm(found[name] - ours[name]) < 0.3 * torch.linalg.norm(found[name] - theirs[name])


# -- what is drawn ----------------------------------------------------------------------------------------------


def test_the_expected_square_of_a_segmentations_gradient_is_that_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0])
    prediction = logits.view(1, 3, 1, 1).repeat(1, 1, 70, 70).requires_grad_(True)
    loss = surprise(SEGMENTATION, prediction, torch.Generator().manual_seed(0))
    squares = torch.autograd.grad(loss, prediction)[0].square().mean(dim=(0, 2, 3))
    chance = logits.softmax(0)
    assert torch.allclose(squares, chance * (1 - chance), atol=0.02)


def test_the_expected_square_of_any_other_gradient_is_that_of_a_unit_gaussian() -> None:
    prediction = torch.randn(1, 2, 50, 50).requires_grad_(True)
    loss = surprise(Regression(name="edges", channels=2), prediction, torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad(loss, prediction)[0]
    assert abs(float(gradient.square().mean()) - 1.0) < 0.05


def test_a_certain_segmentation_has_no_information() -> None:
    prediction = torch.tensor([100.0, 0.0]).view(1, 2, 1, 1).requires_grad_(True)
    loss = surprise(Segmentation(classes=("a", "b")), prediction, torch.Generator())
    assert float(torch.autograd.grad(loss, prediction)[0].abs().max()) < 1e-6


# -- what holds for the merge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(4, 4, 4), (4,)])
@pytest.mark.parametrize("source", ["predictions", "labels"])
def test_equal_experts_and_a_single_one_come_back(seeds: tuple[int, ...], source: str) -> None:
    data = given(images=2, seeds=seeds)
    found = merged_by(Fisher(source), data)  # type: ignore[arg-type]
    for name, value in state(data.experts[0]).items():
        assert torch.allclose(found[name], value, atol=1e-6), name


def test_every_weight_lies_between_those_of_the_experts(data: MergeData) -> None:
    found = merged_by(Fisher(), data)
    for name, value in found.items():
        own = torch.stack([state(e)[name] for e in data.experts])
        assert ((value >= own.amin(0) - 1e-5) & (value <= own.amax(0) + 1e-5)).all(), name


def test_the_order_of_the_experts_changes_nothing_and_the_seed_decides_what_is_drawn(data: MergeData) -> None:
    found = merged_by(Fisher(), data)
    turned = merged_by(Fisher(), replace(data, experts=data.experts[::-1]))
    assert all(torch.allclose(value, turned[name], atol=1e-5) for name, value in found.items())
    again, other = merged_by(Fisher(), data), merged_by(Fisher(), replace(data, seed=1))
    assert all(torch.equal(value, again[name]) for name, value in found.items())
    assert not all(torch.equal(value, other[name]) for name, value in found.items())


def test_experts_are_not_changed(data: MergeData) -> None:
    data.experts[0].encoder.requires_grad_(False)
    before = state_of(*data.experts)
    merged_by(Fisher(), data)
    assert state_of(*data.experts) == before
    assert not any(p.requires_grad or p.grad is not None for p in data.experts[0].encoder.parameters())
    assert all(p.grad is None for p in data.experts[1].parameters())


def test_no_more_images_are_used_than_asked_for(data: MergeData) -> None:
    few = replace(data, images=given(images=1).images)
    found, expected = merged_by(Fisher(images=1), data), merged_by(Fisher(), few)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_labels_are_needed_only_where_they_are_asked_for(data: MergeData) -> None:
    unlabelled = replace(data, images=TinyData(2))
    assert not Fisher().needs_labels
    merged_by(Fisher(), unlabelled)
    assert Fisher("labels").needs_labels
    with pytest.raises(
        SimoError, match=r"fisher .* learns from labels, and tiny \(val\) has none for segmentation, depth"
    ):
        merge(data.experts, Fisher("labels"), data.base, unlabelled.images)


def test_labels_of_the_test_split_are_refused_and_its_pictures_are_not(data: MergeData) -> None:
    images = TinyData(2, [expert.task for expert in data.experts], split="test")
    with pytest.raises(
        SimoError, match=r"labels of tiny \(test\), which are for the last word only; take another split"
    ):
        merge(data.experts, Fisher("labels"), data.base, images)
    merge(data.experts, Fisher(images=1), data.base, images)


def test_an_image_without_a_valid_pixel_adds_nothing(data: MergeData) -> None:
    images = TinyData(2, [e.task for e in data.experts])
    images.samples[1].masks["depth"].zero_()
    expert = data.experts[1]
    both = Fisher("labels").information(expert, replace(data, images=images))
    one = Fisher("labels", images=1).information(expert, replace(data, images=images))
    assert all(torch.allclose(2 * value, one[name]) for name, value in both.items())


def test_broken_weights_are_refused(data: MergeData) -> None:
    data.experts[1].encoder.get_parameter("vit.blocks.0.norm1.bias").data[0] = math.nan
    with pytest.raises(SimoError, match=r"gradient of depth with respect to .* is NaN or infinite"):
        merged_by(Fisher(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "guesses"}, "unknown source 'guesses' of fisher; known: predictions, labels"),
        ({"images": 0}, "images of fisher must be a whole number, 1 or more, got 0"),
        ({"images": 10.5}, "images of fisher must be a whole number, 1 or more, got 10.5"),
        ({"floor": 0.0}, "floor of fisher must be above 0"),
        ({"floor": math.nan}, "floor of fisher must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        Fisher(**options)  # type: ignore[arg-type]


def test_the_options_survive_json() -> None:
    method = Fisher("labels", 7, False, 1e-3)
    assert Fisher(**json.loads(json.dumps(method.parameters()))) == method


def test_experts_in_half_precision_are_merged_in_float32(data: MergeData) -> None:
    for expert in data.experts:
        expert.bfloat16()
    assert all(torch.isfinite(value).all() for value in merged_by(Fisher(images=1), data).values())
