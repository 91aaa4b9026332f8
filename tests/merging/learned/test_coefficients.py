"""The merged encoder as a function of its coefficients, and their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from simo_merge.merging import Parameter
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.coefficients import Coefficients, combine, parameters_of
from simo_merge.merging.learned.fitting import Learned
from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base
from tests.merging.learned.learning import merged_encoder
from tests.tiny import TinyData


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 2), (2, 3, 4)])
def test_a_parameter_of_any_shape_is_the_base_plus_the_weighted_task_vectors(shape: tuple[int, ...]) -> None:
    base, experts = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    parameter = Parameter("blocks.0.x", base, tuple(experts), layer=1, layers=6)
    learned = Learned(Coefficients("layer", ("embeddings", "block 0"), torch.tensor([[9.0] * 3, [0.5, -1, 2]])), (), ())
    expected = base.double()
    for coefficient, expert in zip((0.5, -1.0, 2.0), experts, strict=True):
        expected = expected + coefficient * (expert.double() - base.double())
    found = AdaMerging().merge(parameter, learned)
    assert found.shape == shape
    assert found.dtype == base.dtype
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_one_expert_with_coefficient_1_gives_the_expert_back() -> None:
    base, expert = torch.randn(5, 4), torch.randn(5, 4)
    assert torch.allclose(combine(base, (expert - base)[None], torch.ones(1)), expert, atol=1e-6)


def test_the_encoder_that_is_differentiated_is_the_one_that_is_merged_bit_for_bit(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    found = merged_encoder(base, experts, "layer")
    with torch.no_grad():
        found.raw.copy_(torch.rand_like(found.raw))
        taps = found(images[0].image[None])
    learned = Learned(found.coefficients(), (), ())
    states = [e.encoder.vit.state_dict() for e in experts]
    encoder = copy.deepcopy(experts[0].encoder)
    for parameter in parameters_of(base.vit.state_dict(), states):
        encoder.vit.state_dict()[parameter.name].copy_(AdaMerging().merge(parameter, learned))
    with torch.no_grad():
        expected = encoder(images[0].image[None])
    for ours, theirs in zip((*taps.maps, *taps.prefix), (*expected.maps, *expected.prefix), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("granularity", "groups"), [("task", 1), ("layer", 6), ("tensor", None)])
def test_groups_are_all_parameters_the_layers_or_the_tensors(
    base: Base, experts: tuple[SingleTaskModel, ...], granularity: str, groups: int | None
) -> None:
    found = merged_encoder(base, experts, granularity)
    assert len(found.groups) == (len(base.vit.state_dict()) if groups is None else groups)
    assert found.raw.shape == (len(found.groups), 3)


def test_the_gradient_of_every_coefficient_equals_finite_differences_in_float64(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    pair = experts[:2]
    found = merged_encoder(base, pair, "layer", double=True)
    wanted = [copy.deepcopy(e.encoder).double()(images[0].image[None].double()) for e in pair]
    image = images[0].image[None].double()

    def loss(values: Tensor) -> Tensor:
        found.raw = values
        taps = found(image)
        found_parts = (*taps.maps, *taps.prefix)
        parts = [zip(found_parts, (*theirs.maps, *theirs.prefix), strict=True) for theirs in wanted]
        return torch.stack([((ours - y) ** 2).mean() for part in parts for ours, y in part]).sum()

    start = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, atol=1e-7, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss(start), start)
    assert (gradient[:5].abs() > 1e-8).all()
    assert (gradient[5] == 0).all()  # the norm after the last block reaches no tap


def test_the_gradient_is_the_inner_product_of_the_weights_gradient_and_the_task_vector(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    found = merged_encoder(base, experts, "tensor")
    (gradient,) = torch.autograd.grad(found(images[0].image[None]).maps[1].square().mean(), found.raw)
    weights = {name: w.detach().requires_grad_() for name, w in found.weights().items()}
    loss = functional_call(found.encoder, weights, (images[0].image[None],)).maps[1].square().mean()
    through = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    origin = base.vit.state_dict()
    for row, (name, to_weight) in enumerate(zip(weights, through, strict=True)):
        plain = name.removeprefix("vit.")
        for column, expert in enumerate(experts):
            vector = expert.encoder.vit.state_dict()[plain] - origin[plain]
            expected = 0.0 if to_weight is None else float((to_weight.double() * vector.double()).sum())
            assert float(gradient[row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_a_coefficient_a_task_is_a_coefficient_a_layer_with_the_layers_tied(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    gradients = {}
    for granularity in ("task", "layer", "tensor"):
        found = merged_encoder(base, experts, granularity, double=True)
        taps = found(images[0].image[None].double())
        (gradients[granularity],) = torch.autograd.grad(taps.maps[1].square().mean(), found.raw)
    for granularity in ("layer", "tensor"):
        assert torch.allclose(gradients[granularity].sum(0, keepdim=True), gradients["task"], rtol=1e-9)


def test_with_a_density_the_vectors_are_trimmed_over_the_whole_model_and_rid_of_entries_against_the_elected_sign(
    base: Base, experts: tuple[SingleTaskModel, ...]
) -> None:
    states = [e.encoder.vit.state_dict() for e in experts]
    parameters = list(parameters_of(base.vit.state_dict(), states))
    method = AdaMerging(density=0.2)
    thresholds = method.thresholds(lambda: iter(parameters))
    found = torch.cat([method.vectors(p, thresholds).reshape(3, -1) for p in parameters], dim=1)
    vectors = torch.cat([p.vectors.reshape(3, -1) for p in parameters], dim=1)
    size = vectors.shape[1]
    for vector in vectors:
        vector[vector.abs() < vector.abs().sort().values[size - round(0.2 * size)]] = 0
    signs = vectors.sum(0).sign()
    expected = torch.where(vectors * signs > 0, vectors, 0.0)
    assert torch.equal(found, expected)
    assert 0 < int((found != 0).sum()) < 0.6 * size
