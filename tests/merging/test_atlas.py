"""aTLAS: one coefficient for every tensor, learned as AdaMerging's are, with a pull towards the base."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging import MergeData, merge, merge_method
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.atlas import Atlas
from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, tiny_base, tiny_expert

CPU = torch.device("cpu")


@pytest.fixture
def base() -> Base:
    return tiny_base()


@pytest.fixture
def experts(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed + 1) for seed, task in enumerate((SEGMENTATION, DEPTH, NORMALS))]


def test_without_decay_it_is_adamerging_with_a_coefficient_a_tensor(base: Base, experts: list[SingleTaskModel]) -> None:
    data = MergeData(base, tuple(experts), TinyData(4), CPU)
    ours = Atlas(steps=4, batch_size=2, initial=0.2, weight_decay=0.0).observe(data)
    theirs = AdaMerging(granularity="tensor", steps=4, batch_size=2, initial=0.2).observe(data)
    assert torch.equal(ours.coefficients.values, theirs.coefficients.values)
    assert ours.coefficients.groups == theirs.coefficients.groups


def test_every_tensor_has_its_own_coefficients_biases_and_norms_included(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    found = Atlas(steps=3, batch_size=2).observe(MergeData(base, tuple(experts), TinyData(4), CPU))
    assert set(found.coefficients.groups) == set(base.vit.state_dict())
    assert found.coefficients.values.shape == (len(base.vit.state_dict()), 3)
    moved = {g for g, row in found.coefficients.as_lists().items() if any(row)}
    assert {"cls_token", "blocks.0.norm1.weight", "blocks.3.mlp.fc2.bias", "blocks.2.attn.qkv.weight"} <= moved
    assert "norm.weight" not in moved  # it comes after the last tap


def test_a_tensor_that_alone_was_changed_is_found_and_the_others_stay(base: Base) -> None:
    expert, origin = tiny_expert(DEPTH, base, 1, shift=0.15), base.vit.state_dict()
    planted = "blocks.1.mlp.fc1.weight"
    for name, tensor in expert.encoder.vit.state_dict().items():
        if name != planted:
            tensor.copy_(origin[name])
    method = Atlas(steps=60, lr=0.05, batch_size=5, weight_decay=0.0)
    found = method.observe(MergeData(base, (expert,), TinyData(5), CPU)).coefficients.as_lists()
    assert found.pop(planted)[0] == pytest.approx(1, abs=0.05)
    assert not any(value for row in found.values() for value in row)


def test_weight_decay_pulls_towards_the_base(base: Base, experts: list[SingleTaskModel]) -> None:
    data = MergeData(base, tuple(experts), TinyData(4), CPU)
    norms = [
        float(Atlas(steps=20, batch_size=4, weight_decay=decay, lr=0.05).observe(data).coefficients.values.norm())
        for decay in (0.0, 1.0)
    ]
    assert norms[1] < 0.9 * norms[0]


def test_by_default_it_starts_from_the_base(base: Base, experts: list[SingleTaskModel]) -> None:
    method = Atlas(lr=1e-12, steps=1)
    merged = merge(experts, method, base, TinyData(3))
    for name, tensor in merged.encoder.vit.state_dict().items():
        assert torch.allclose(tensor, base.vit.state_dict()[name], atol=1e-7), name


def test_the_merged_model_has_the_learned_coefficients_in_its_weights_and_its_record(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    data, method = TinyData(4, (SEGMENTATION, DEPTH, NORMALS)), Atlas(objective="supervised", steps=3, batch_size=2)
    assert method.needs_labels
    learned = method.observe(MergeData(base, tuple(experts), data, CPU, seed=5)).coefficients.as_lists()
    merged = merge(experts, method, base, data, device="cpu", seed=5)
    assert merged.merge is not None
    assert json.loads(json.dumps(merged.merge.parameters["coefficients"])) == learned
    for name, origin in base.vit.state_dict().items():
        expected = origin.double()
        for coefficient, expert in zip(learned[name], experts, strict=True):
            expected = expected + coefficient * (expert.encoder.vit.state_dict()[name].double() - origin.double())
        assert torch.allclose(merged.encoder.vit.state_dict()[name].double(), expected, atol=1e-6), name


def test_options_are_checked_and_survive_a_round_trip() -> None:
    method = Atlas(steps=7, weight_decay=0.0)
    assert merge_method("atlas", json.loads(json.dumps(method.parameters()))) == method
    assert merge_method("adamerging", {"granularity": "task"}) == AdaMerging(granularity="task")
    for decay in (-0.1, float("nan")):
        with pytest.raises(SimoError, match=f"weight_decay of atlas .* got {decay}"):
            Atlas(weight_decay=decay)


def test_the_experts_are_left_alone(base: Base, experts: list[SingleTaskModel]) -> None:
    before = [copy.deepcopy(e.state_dict()) for e in experts]
    Atlas(steps=2, batch_size=2).observe(MergeData(base, tuple(experts), TinyData(3), CPU))
    for expert, state in zip(experts, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in expert.state_dict().items())
