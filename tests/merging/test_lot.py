"""LOT merging: against pseudo-inverses and weighted means in float64, and against the drift it minimises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MergeData
from simo_merge.merging.from_images.lot import Lot
from tests.merging.reached import all_images, given, linear_weights, merged_by, reaches, state

SCALES = [f"blocks.{i}.{s}" for i in range(2) for s in ("norm1.weight", "norm2.weight", "ls1.gamma", "ls2.gamma")]


@pytest.fixture(scope="module")
def data() -> MergeData:
    return given(images=30)


def vectors(data: MergeData, name: str) -> list[Tensor]:
    base = data.base.vit.state_dict()[name].double()
    return [state(expert)[name].double() - base for expert in data.experts]


def rows(data: MergeData, name: str) -> list[Tensor]:
    layer = name.rpartition(".")[0]
    found = [reaches(expert.encoder, all_images(data), layer) for expert in data.experts]
    if "norm" in name:
        centred = [x - x.mean(1, keepdim=True) for x in found]
        found = [x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() for x in centred]
    return found


def task_vector(found: dict[str, Tensor], data: MergeData, name: str) -> Tensor:
    return found[name].double() - data.base.vit.state_dict()[name].double()


def test_linear_layers_follow_equation_9(data: MergeData) -> None:
    found = merged_by(Lot(), data)
    for name in linear_weights(data):
        grams = [x.T @ x for x in rows(data, name)]
        total = sum(v @ g for v, g in zip(vectors(data, name), grams, strict=True))
        expected = total @ torch.linalg.pinv(sum(grams), rtol=1e-12)
        assert torch.allclose(task_vector(found, data, name), expected, atol=1e-4), name


def test_where_tokens_are_fewer_than_channels_the_smallest_task_vector_is_taken() -> None:
    data = given(images=1)
    found = merged_by(Lot(), data)
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight"):
        stacked = torch.cat(rows(data, name))
        answers = torch.cat([x @ v.T for x, v in zip(rows(data, name), vectors(data, name), strict=True)])
        expected = (torch.linalg.pinv(stacked, rtol=1e-6) @ answers).T
        assert torch.allclose(task_vector(found, data, name), expected, atol=2e-3), name


def test_scales_of_channels_follow_equation_12(data: MergeData) -> None:
    found = merged_by(Lot(), data)
    for name in SCALES:
        squares = [x.square().sum(0) for x in rows(data, name)]
        expected = sum(s * v for s, v in zip(squares, vectors(data, name), strict=True)) / sum(squares)
        assert torch.allclose(task_vector(found, data, name), expected, atol=1e-6), name


def test_all_others_are_averaged(data: MergeData) -> None:
    found = merged_by(Lot(), data)
    for name in set(found) - set(SCALES) - set(linear_weights(data)):
        assert torch.allclose(task_vector(found, data, name), sum(vectors(data, name)) / 3, atol=1e-6), name


def drift(candidate: Tensor, inputs: list[Tensor], targets: list[Tensor]) -> float:
    total = 0.0
    for x, target in zip(inputs, targets, strict=True):
        away = candidate - target
        total += float((x * away if away.ndim == 1 else x @ away.T).square().sum())
    return total


def test_nothing_near_lets_features_drift_less(data: MergeData) -> None:
    found, generator = merged_by(Lot(), data), torch.Generator().manual_seed(0)
    for name in (*linear_weights(data), *SCALES):
        inputs, targets = rows(data, name), vectors(data, name)
        tau = task_vector(found, data, name)
        least = drift(tau, inputs, targets)
        assert least < drift(sum(targets) / 3, inputs, targets), name  # type: ignore[arg-type]
        for _ in range(3):
            moved = tau + 2e-3 * torch.randn(tau.shape, generator=generator)
            assert least < drift(moved, inputs, targets), name


@pytest.mark.parametrize("seeds", [(4, 4, 4), (4,)])
def test_equal_experts_and_a_single_one_come_back_in_what_they_answer(seeds: tuple[int, ...]) -> None:
    data = given(images=12, seeds=seeds)
    expert, merged = data.experts[0].encoder, copy.deepcopy(data.experts[0].encoder)
    merged.vit.load_state_dict(merged_by(Lot(), data))
    with torch.inference_mode():
        for found, expected in zip(merged(all_images(data)).maps, expert(all_images(data)).maps, strict=True):
            assert torch.allclose(found, expected, atol=1e-3)


def test_equal_experts_come_back_in_their_weights_where_every_direction_is_seen() -> None:
    data = given(images=40, seeds=(4, 4, 4))
    found = merged_by(Lot(), data)
    for name, value in state(data.experts[0]).items():
        seen = name not in linear_weights(data) or all(
            torch.linalg.matrix_rank(x, rtol=1e-3) == x.shape[1] for x in rows(data, name)
        )
        assert torch.allclose(found[name], value, atol=2e-4) or not seen, name


def test_the_order_of_the_experts_changes_nothing() -> None:
    one, other = given(images=8), given(images=8)
    object.__setattr__(other, "experts", tuple(other.experts[i] for i in (2, 0, 1)))
    found, again = merged_by(Lot(), one), merged_by(Lot(), other)
    assert all(torch.allclose(value, again[name], atol=1e-4) for name, value in found.items())


def test_experts_that_never_left_the_base_give_the_base() -> None:
    data = given(images=3, shift=0.0)
    found = merged_by(Lot(), data)
    assert all(torch.equal(value, found[name]) for name, value in data.base.vit.state_dict().items())


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_above_0_is_refused(ridge: float) -> None:
    with pytest.raises(SimoError, match="ridge of lot"):
        Lot(ridge)
