"""MaTS with Kronecker-factored Fisher information: against gradients taken one by one, and a dense solve."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.merging import MergeData, Subspace
from simo_merge.merging.from_images.fisher import surprise
from simo_merge.merging.from_images.kfac import kronecker_factors
from simo_merge.merging.from_images.subspace import matched
from simo_merge.models import SingleTaskModel
from tests.merging.reached import given, linear_weights, merged_by, state
from tests.tiny import DEPTH, SEGMENTATION, regression, state_of

SMALL = "blocks.0.attn.proj.weight"  # 24 x 24


@pytest.fixture(scope="module")
def data() -> MergeData:
    return given(images=4, tasks=(SEGMENTATION, DEPTH), seeds=(0, 1))


def slow_factors(expert: SingleTaskModel, data: MergeData, layer: str) -> tuple[Tensor, Tensor]:
    """S and A of one layer, from every token's own gradient, in float64."""
    module = expert.encoder.vit.get_submodule(layer)
    generator = torch.Generator().manual_seed(data.seed)
    rows, gradients = [], []

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        rows.extend(args[0].detach().double().flatten(0, -2))
        output.retain_grad()
        kept.append(output)

    hook = module.register_forward_hook(keep)
    for index in range(len(data.images)):
        kept: list[Tensor] = []
        loss = surprise(expert.task, expert(data.images[index].image[None]), generator)
        loss.backward()
        assert kept[0].grad is not None
        gradients.append(kept[0].grad.double().flatten(0, -2))
        expert.zero_grad()
    hook.remove()
    s = sum(sum(torch.outer(g, g) for g in image) for image in gradients) / len(data.images)
    a = sum(torch.outer(row, row) for row in rows) / len(rows)
    return s, a


def dense_solve(pairs: list[tuple[Tensor, Tensor]], weights: list[Tensor]) -> Tensor:
    """The least-norm D with sum_t (S_t (x) A_t) vec(D - D_t) = 0."""
    whole = sum(torch.kron(s, a) for s, a in pairs)
    right = sum(torch.kron(s, a) @ w.flatten() for (s, a), w in zip(pairs, weights, strict=True))
    return (torch.linalg.pinv(whole, hermitian=True) @ right).view_as(weights[0])


def damped(matrix: Tensor, off_diagonal: float) -> Tensor:
    result = matrix * off_diagonal
    for i in range(len(matrix)):
        result[i, i] = matrix[i, i]
    return result


@pytest.mark.parametrize("layer", ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.fc2"])
def test_the_factors_are_those_of_every_tokens_gradient(data: MergeData, layer: str) -> None:
    for expert in data.experts:
        s, a = slow_factors(expert, data, layer)
        found = kronecker_factors(expert, data, 256)
        assert torch.allclose(
            found.gradients[f"{layer}.weight"].double(), s, rtol=1e-3, atol=1e-5 * float(s.abs().max())
        )
        assert torch.allclose(found.inputs[f"{layer}.weight"].double(), a, rtol=1e-3, atol=1e-5 * float(a.abs().max()))


def test_conjugate_gradients_reach_the_dense_solution() -> None:
    draw = torch.randn(3, 40, 11, dtype=torch.float64)
    pairs = [(d[:, :5].T @ d[:, :5], d[:, 5:].T @ d[:, 5:]) for d in draw]
    weights = list(torch.randn(3, 5, 6, dtype=torch.float64))
    assert torch.allclose(matched(pairs, weights, 400), dense_solve(pairs, weights), atol=1e-8)
    fewer = matched(pairs, weights, 2)
    assert not torch.allclose(fewer, dense_solve(pairs, weights), atol=1e-3)
    assert torch.equal(matched(pairs, weights, 0), torch.zeros(5, 6, dtype=torch.float64))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_merged_weights_solve_the_dense_system(data: MergeData, normalise: bool) -> None:
    method = Subspace(iterations=4000, off_diagonal=0.8, covariance="kfac", normalise=normalise)
    found = merged_by(method, data)[SMALL].double()
    pairs = []
    for expert in data.experts:
        factors = kronecker_factors(expert, data, 256)
        size = 1.0
        if normalise:
            diagonals = [
                torch.kron(s.diagonal(), factors.inputs[n].diagonal()).double() for n, s in factors.gradients.items()
            ]
            size = float(sum(d.sum() for d in diagonals)) / sum(d.numel() for d in diagonals)
        s, a = slow_factors(expert, data, SMALL.removesuffix(".weight"))
        pairs.append((damped(s, 0.8) / size, damped(a, 0.8)))
    weights = [state(expert)[SMALL].double() for expert in data.experts]
    mean = sum(weights) / len(weights)
    expected = mean + dense_solve(pairs, [w - mean for w in weights])
    apart = (weights[0] - weights[1]).abs().max()
    assert (found - expected).abs().max() < 0.02 * apart
    assert (mean - expected).abs().max() > 0.1 * apart


def test_the_unit_of_a_task_does_not_weigh_it_unless_asked() -> None:
    loud = given(images=4, tasks=(regression("length"), regression("height")), seeds=(0, 1))
    loud.experts[0].decoder.get_parameter("project.weight").data.mul_(100.0)  # in centimetres
    factors = [kronecker_factors(expert, loud, 4).mean_square() for expert in loud.experts]
    assert factors[0] > 1000 * factors[1]
    weights = [state(e)[SMALL] for e in loud.experts]
    for normalise in (True, False):
        found = merged_by(Subspace(covariance="kfac", normalise=normalise), loud)[SMALL]
        shares = [float((found - w).norm()) for w in weights]
        assert (shares[0] < 0.5 * shares[1]) == (not normalise), (normalise, shares)


def test_equal_experts_and_no_steps_give_the_average() -> None:
    same = given(images=2, seeds=(4, 4, 4))
    found = merged_by(Subspace(covariance="kfac"), same)
    for name, value in state(same.experts[0]).items():
        assert torch.allclose(found[name], value, atol=1e-5), name
    apart = given(images=2)
    found = merged_by(Subspace(0, covariance="kfac"), apart)
    for name in linear_weights(apart):
        assert torch.allclose(found[name], torch.stack([state(e)[name] for e in apart.experts]).mean(0), atol=1e-6)


def test_layers_that_no_prediction_depends_on_are_averaged_and_experts_stay_as_they_are() -> None:
    early = given(images=2, taps=(0,))
    before = state_of(*early.experts)
    found = merged_by(Subspace(covariance="kfac"), early)
    assert state_of(*early.experts) == before
    for name in linear_weights(early):
        average = torch.stack([state(e)[name] for e in early.experts]).mean(0)
        assert torch.allclose(found[name], average, atol=1e-6) == name.startswith("blocks.1."), name


def test_fewer_images_may_be_read(data: MergeData) -> None:
    two = given(images=2, tasks=(SEGMENTATION, DEPTH), seeds=(0, 1))
    two.images.samples = data.images.samples[:2]  # type: ignore[attr-defined]
    capped, whole = merged_by(Subspace(covariance="kfac", images=2), data), merged_by(Subspace(covariance="kfac"), two)
    assert all(torch.equal(value, whole[name]) for name, value in capped.items())


def test_broken_weights_are_refused() -> None:
    broken = given(images=1)
    broken.experts[1].encoder.get_parameter("vit.blocks.0.norm1.bias").data[0] = math.nan
    with pytest.raises(SimoError, match=r"depth.*blocks\.0\.attn\.qkv\.weight holds NaN"):
        merged_by(Subspace(covariance="kfac"), broken)


def test_options_are_checked_and_survive_json() -> None:
    method = Subspace(7, 0.5, "kfac", 9, False)
    assert Subspace(**json.loads(json.dumps(method.parameters()))) == method
    with pytest.raises(SimoError, match="unknown covariance 'fisher' of mats; known: inputs, kfac"):
        Subspace(covariance="fisher")  # type: ignore[arg-type]
    with pytest.raises(SimoError, match="images of mats must be a whole number, 1 or more, got 0"):
        Subspace(images=0)
