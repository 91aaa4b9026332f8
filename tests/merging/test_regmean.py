"""RegMean, RegMean++ and MaTS: against explicit least squares in float64, and against their objective."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import DataMergeMethod, MergeData, Parameter
from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.from_images.regmean import RegMean, RegMeanPlusPlus
from simo_merge.merging.from_images.subspace import Subspace, conjugate_gradients
from simo_merge.weights import Base, fingerprint
from simo_merge.weights.architecture import create_vit
from tests.merging.reached import all_images, given, linear_weights, merged_by, reaches, state
from tests.tiny import SIZE, state_of

METHODS = (RegMean(), RegMeanPlusPlus(), Subspace())
RIDGE = 1e-12


@pytest.fixture(scope="module")
def data() -> MergeData:
    return given(images=30)


def rows_and_weights(data: MergeData, name: str) -> list[tuple[Tensor, Tensor]]:
    images = all_images(data)
    layer = name.removesuffix(".weight")
    return [(reaches(e.encoder, images, layer), state(e)[name].double()) for e in data.experts]


def slow_regmean(pairs: Sequence[tuple[Tensor, Tensor]], off_diagonal: float) -> Tensor:
    total, target = 0, 0
    for rows, weight in pairs:
        gram = rows.T @ rows
        for i in range(len(gram)):
            for j in range(len(gram)):
                if i != j:
                    gram[i, j] *= off_diagonal
        total, target = total + gram, target + gram @ weight.T
    return torch.linalg.solve(total, target).T


def objective(candidate: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    return sum(float((rows @ (candidate.double() - weight).T).square().sum()) for rows, weight in pairs)


# -- the formulas -----------------------------------------------------------------------------------------------


def test_regmean_follows_its_formula(data: MergeData) -> None:
    found = merged_by(RegMean(ridge=RIDGE), data)
    for name in linear_weights(data)[2:4]:
        expected = slow_regmean(rows_and_weights(data, name), 0.9)
        assert torch.allclose(found[name].double(), expected, atol=1e-5), name


def test_regmean_with_full_gram_matrices_solves_the_stacked_least_squares_problem(data: MergeData) -> None:
    found = merged_by(RegMean(off_diagonal=1.0, ridge=RIDGE), data)
    for name in linear_weights(data):
        pairs = rows_and_weights(data, name)
        answers = torch.cat([rows @ weight.T for rows, weight in pairs])
        expected = torch.linalg.lstsq(torch.cat([rows for rows, _ in pairs]), answers).solution.T
        assert torch.allclose(found[name].double(), expected, atol=1e-4), name


def test_nothing_near_regmean_answers_more_like_the_experts(data: MergeData) -> None:
    found = merged_by(RegMean(off_diagonal=1.0, ridge=RIDGE), data)
    generator = torch.Generator().manual_seed(0)
    for name in linear_weights(data):
        pairs = rows_and_weights(data, name)
        least = objective(found[name], pairs)
        assert least < objective(sum(weight for _, weight in pairs) / len(pairs), pairs), name  # type: ignore[arg-type]
        for _ in range(3):
            moved = found[name] + 1e-3 * torch.randn(found[name].shape, generator=generator)
            assert least < objective(moved, pairs), name


def rotary_base(name: str) -> Base:
    """An encoder whose blocks are called with position embeddings beside tokens."""
    torch.manual_seed(0)
    vit = create_vit(name, SIZE, depth=2, embed_dim=24, num_heads=2)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Base(vit, name, "timm:tiny", fingerprint(vit.state_dict()))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"])
def test_regmean_plus_plus_calls_blocks_as_the_encoder_does(name: str) -> None:
    check_that_blocks_read_what_merged_blocks_give(given(images=30, base=rotary_base(name)))


def test_regmean_plus_plus_reads_what_the_merged_blocks_give(data: MergeData) -> None:
    check_that_blocks_read_what_merged_blocks_give(data)


def check_that_blocks_read_what_merged_blocks_give(data: MergeData) -> None:
    found = merged_by(RegMeanPlusPlus(ridge=RIDGE), data)
    merged = copy.deepcopy(data.experts[0].encoder)
    average = {n: sum(state(e)[n] for e in data.experts) / 3 for n in state(data.experts[0])}
    images = all_images(data)
    for index in range(2):
        # block `index` of an expert, behind merged blocks and the averaged embedding
        hybrids = []
        for expert in data.experts:
            hybrid = copy.deepcopy(merged)
            hybrid.vit.load_state_dict(average | {k: v for k, v in found.items() if int(_block(k)) < index})
            hybrid.vit.blocks[index].load_state_dict(expert.encoder.vit.blocks[index].state_dict())
            hybrids.append(hybrid)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            name = f"blocks.{index}.{layer}"
            pairs = [(reaches(h, images, name), h.vit.get_parameter(f"{name}.weight").double()) for h in hybrids]
            expected = slow_regmean([(r, w.detach()) for r, w in pairs], 0.9)
            assert torch.allclose(found[f"{name}.weight"].double(), expected, atol=1e-5), name


def _block(name: str) -> str:
    return name.split(".")[1] if name.startswith("blocks.") else "-1"


def test_mats_with_many_steps_is_regmean_and_with_none_the_average(data: MergeData) -> None:
    exact = merged_by(RegMean(ridge=RIDGE), data)
    many, none = merged_by(Subspace(iterations=2000), data), merged_by(Subspace(iterations=0), data)
    for name in linear_weights(data):
        assert torch.allclose(many[name], exact[name], atol=1e-4), name
        assert torch.allclose(none[name], sum(state(e)[name] for e in data.experts) / 3, atol=1e-6), name


def test_every_step_of_mats_comes_nearer_to_its_objective(data: MergeData) -> None:
    name = "blocks.1.mlp.fc2.weight"
    pairs = rows_and_weights(data, name)
    values = [objective(merged_by(Subspace(n, off_diagonal=1.0), data)[name], pairs) for n in (0, 1, 3, 10, 100)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_directions() -> None:
    torch.manual_seed(0)
    root = torch.randn(12, 4, dtype=torch.float64)
    gram, wanted = root @ root.T, torch.randn(1, 12, dtype=torch.float64)
    found = conjugate_gradients(lambda step: step @ gram, wanted @ gram, 4)
    assert torch.allclose(found @ gram, wanted @ gram, atol=1e-8)
    longer = [conjugate_gradients(lambda step: step @ gram, wanted @ gram, steps) for steps in (400, 401)]
    assert torch.equal(*longer)


# -- what holds for all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_equal_experts_give_the_expert_back(method: DataMergeMethod) -> None:
    data = given(images=5, seeds=(4, 4, 4))
    found = merged_by(method, data)
    for name, value in state(data.experts[0]).items():
        assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_one_expert_gives_itself_back(method: DataMergeMethod) -> None:
    data = given(images=2, seeds=(4,))
    found = merged_by(method, data)
    for name, value in state(data.experts[0]).items():
        assert torch.allclose(found[name], value, atol=1e-6), name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_order_of_the_experts_changes_nothing(method: DataMergeMethod) -> None:
    one, other = given(images=6), given(images=6)
    object.__setattr__(other, "experts", tuple(other.experts[i] for i in (2, 0, 1)))
    found, again = merged_by(method, one), merged_by(method, other)
    for name, value in found.items():
        assert torch.allclose(value, again[name], atol=1e-4), name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_all_but_the_linear_weights_are_averaged_and_experts_stay_as_they_are(method: DataMergeMethod) -> None:
    data = given(images=3, taps=(0,))
    before = state_of(*data.experts)
    found = merged_by(method, data)
    assert state_of(*data.experts) == before
    fitted = {name for name in linear_weights(data) if name.startswith("blocks.0.")}
    for name, value in found.items():
        average = sum(state(e)[name].double() for e in data.experts) / 3
        assert torch.allclose(value.double(), average, atol=1e-6) == (name not in fitted), name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_fewer_tokens_than_channels_and_dead_channels_stay_near_the_experts(method: DataMergeMethod) -> None:
    data = given(images=1)  # 7 tokens, 24 and 96 channels
    for expert in data.experts:
        norm = expert.encoder.vit.get_submodule("blocks.0.norm1")
        norm.weight.data[5], norm.bias.data[5] = 0.0, 0.0
    found = merged_by(method, data)
    for name in linear_weights(data):
        weights = torch.stack([state(e)[name] for e in data.experts])
        assert (found[name] - weights.mean(0)).abs().max() < 10 * (weights - weights.mean(0)).abs().max(), name
    dead = torch.stack([state(e)["blocks.0.attn.qkv.weight"] for e in data.experts])[..., 5].mean(0)
    assert torch.allclose(found["blocks.0.attn.qkv.weight"][:, 5], dead, atol=1e-6)


def test_no_input_at_all_solves_to_zero() -> None:
    equation = NormalEquations.empty(torch.ones(2, 3))
    assert torch.equal(equation.solve(1e-6), torch.zeros(2, 3, dtype=torch.float64))


def test_a_scalar_or_vector_that_was_not_fitted_is_averaged() -> None:
    for shape in ((), (1,), (4,)):
        parameter = Parameter("norm.weight", torch.ones(shape), (torch.zeros(shape), 4 * torch.ones(shape)))
        assert torch.allclose(RegMean().merge(parameter, {}), 2 * torch.ones(shape))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_broken_weights_are_refused(method: DataMergeMethod) -> None:
    data = given(images=2)
    data.experts[1].encoder.get_parameter("vit.blocks.0.norm1.bias").data[0] = math.nan
    with pytest.raises(SimoError, match=r"blocks\.0\.attn\.qkv\.weight holds NaN"):
        merged_by(method, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegMean(off_diagonal=1.1), "off_diagonal of regmean"),
        (lambda: RegMean(off_diagonal=-0.1), "off_diagonal of regmean"),
        (lambda: RegMean(ridge=0.0), "ridge of regmean must be above 0"),
        (lambda: RegMeanPlusPlus(ridge=math.nan), "ridge of regmean-plus-plus"),
        (lambda: Subspace(iterations=-1), "iterations of mats must be a whole number, 0 or more, got -1"),
        (lambda: Subspace(iterations=3.0), "iterations of mats must be a whole number, 0 or more, got 3.0"),  # type: ignore[arg-type]
        (lambda: Subspace(off_diagonal=math.nan), "off_diagonal of mats"),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(SimoError, match=message):
        make()  # type: ignore[operator]


def test_the_options_survive_json() -> None:
    for method in (RegMean(0.5, 1e-3), RegMeanPlusPlus(0.5, 1e-3), Subspace(7, 0.5)):
        assert type(method)(**json.loads(json.dumps(method.parameters()))) == method


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_experts_in_half_precision_are_merged_in_float32(method: DataMergeMethod) -> None:
    half, wide = given(images=3), given(images=3)
    for expert, same in zip(half.experts, wide.experts, strict=True):
        same.encoder.load_state_dict(expert.encoder.bfloat16().state_dict())
    found, expected = merged_by(method, half), merged_by(method, wide)
    assert all(value.dtype == torch.float32 and torch.equal(value, expected[name]) for name, value in found.items())
