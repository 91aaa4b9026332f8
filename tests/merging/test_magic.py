"""MAGIC: rows and features as long as the experts' are on average, against the definitions written out."""

from __future__ import annotations

import copy
import json
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.merging import MergeData, Parameter, TaskArithmetic
from simo_merge.merging.from_images.magic import Magic, MagicWeights, Surface
from simo_merge.merging.states import merge_states
from tests.merging.reached import all_images, given, merged_by, state
from tests.tiny import state_of


@pytest.fixture
def data() -> MergeData:
    return given(images=18)


def arithmetic(data: MergeData, scale: float) -> dict[str, Tensor]:
    base = {name: value.double() for name, value in data.base.vit.state_dict().items()}
    return {n: v + scale * sum(state(e)[n].double() - v for e in data.experts) for n, v in base.items()}


def modules(data: MergeData) -> list[str]:
    found = []
    for name, module in data.base.vit.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)) or hasattr(module, "gamma"):
            found.append(name)
    return [name for name in found if name != "norm"]  # the last norm does not run


def slow_ratio(data: MergeData, start: dict[str, Tensor], module: str) -> float:
    """mean_t mean_x ||f_t(x) - f_0(x)||_1 / ||f_m(x) - f_0(x)||_1, everything in float64."""
    merged = copy.deepcopy(data.experts[0].encoder).double()
    merged.vit.load_state_dict(start)
    inputs: list[Tensor] = []
    hook = merged.vit.get_submodule(module).register_forward_hook(lambda _, args, out: inputs.append(args[0]))
    with torch.inference_mode():
        merged(all_images(data).double())
        hook.remove()
        base = copy.deepcopy(data.base.vit).double().get_submodule(module)
        origin = base(inputs[0])
        moved = merged.vit.get_submodule(module)(inputs[0]) - origin
        ratios = []
        for expert in data.experts:
            own = copy.deepcopy(expert.encoder.vit).double().get_submodule(module)(inputs[0]) - origin
            axis = 1 if own.ndim == 4 else -1
            ratios.append(float((own.abs().sum(axis) / moved.abs().sum(axis)).mean()))
    return sum(ratios) / len(ratios)


# -- features ---------------------------------------------------------------------------------------------------


def test_ratios_are_those_of_the_definition(data: MergeData) -> None:
    start = arithmetic(data, 0.3)
    found = Magic().observe(data).values
    assert sorted(found) == sorted(modules(data))
    for module in found:
        assert found[module] == pytest.approx(slow_ratio(data, start, module), rel=1e-3), module


def test_the_merged_task_vector_of_every_module_is_scaled_by_its_ratio(data: MergeData) -> None:
    ratios, start = Magic(0.4).observe(data).values, arithmetic(data, 0.4)
    found, base = merged_by(Magic(0.4), data), data.base.vit.state_dict()
    for name, value in found.items():
        ratio = ratios.get(name.rpartition(".")[0], 1.0)
        assert torch.allclose(value.double(), base[name] + ratio * (start[name] - base[name]), atol=1e-5), name
    assert torch.allclose(found["cls_token"].double(), start["cls_token"], atol=1e-6)


def test_after_it_features_move_as_far_as_the_experts_on_the_same_inputs(data: MergeData) -> None:
    found = merged_by(Magic(), data)
    start = arithmetic(data, 0.3)
    module = "blocks.0.norm1"  # nothing before it in the block, so scaling it does not depend on others
    calibrated = start | {n: v.double() for n, v in found.items() if n.startswith(module)}
    assert slow_ratio(data, calibrated, module) == pytest.approx(1.0, rel=1e-3)


def test_equal_experts_give_their_modules_back_whatever_the_scale() -> None:
    data = given(images=3, seeds=(4, 4, 4))
    found = merged_by(Magic(0.2), data)
    for name, value in state(data.experts[0]).items():
        if name.rpartition(".")[0] in modules(data):
            assert torch.allclose(found[name], value, atol=1e-5), name


def test_dual_space_starts_from_weights_of_the_right_length(data: MergeData) -> None:
    states = [state(e) for e in data.experts]
    start = merge_states(data.base.vit.state_dict(), states, MagicWeights(0.3)).shared
    found = Magic(0.3, dual=True).observe(data).values
    wide = {name: value.double() for name, value in start.items()}
    assert found["blocks.1.mlp.fc1"] == pytest.approx(slow_ratio(data, wide, "blocks.1.mlp.fc1"), rel=1e-3)


def test_sensitive_modules_are_never_scaled_up(data: MergeData) -> None:
    plain, found = Magic(0.1).observe(data).values, Magic(0.1, sensitive=("blocks.0",)).observe(data).values
    assert plain["blocks.0.mlp.fc1"] > 1
    for name, ratio in plain.items():
        assert found[name] == (min(ratio, 1.0) if "blocks.0" in name else ratio)


def test_experts_that_never_left_the_base_give_the_base_and_are_not_changed() -> None:
    data = given(images=2, shift=0.0)
    before = state_of(*data.experts)
    found = merged_by(Magic(), data)
    assert all(torch.equal(found[name], value) for name, value in data.base.vit.state_dict().items())
    assert state_of(*data.experts) == before
    assert not any(module._forward_hooks for e in data.experts for module in e.modules())


# -- weights ----------------------------------------------------------------------------------------------------


def merged(method: MagicWeights, base: Tensor, vectors: Tensor, name: str = "blocks.0.mlp.fc1.weight") -> Tensor:
    return method.merge(Parameter(name, base, tuple(base + vector for vector in vectors)))


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2)])
def test_rows_are_as_long_as_the_experts_are_on_average_and_point_where_their_sum_does(shape: tuple[int, ...]) -> None:
    base, vectors = torch.randn(shape).double(), torch.randn(3, *shape).double()
    moved = merged(MagicWeights(0.3), base, vectors) - base
    for i in range(shape[0]):
        wanted = sum(float(v[i].abs().sum()) for v in vectors) / 3
        assert float(moved[i].abs().sum()) == pytest.approx(wanted)
        direction = vectors.sum(0)[i].flatten()
        assert torch.cosine_similarity(moved[i].flatten(), direction, dim=0) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2)])
def test_the_ellipsoid_follows_its_formula_row_by_row(shape: tuple[int, ...]) -> None:
    base, vectors = torch.randn(shape).double(), torch.randn(3, *shape).double()
    moved = merged(MagicWeights(0.3, "ellipsoid"), base, vectors) - base
    for i in range(shape[0]):
        rows, d = vectors[:, i].flatten(1), 0.3 * vectors[:, i].sum(0).flatten()
        along = [float(d @ row / (row @ row)) for row in rows]
        rest = d - sum(a * row for a, row in zip(along, rows, strict=True))
        mean = sum(float(row.norm()) for row in rows) / 3
        xi = (sum(a**2 for a in along) + float(rest @ rest) / mean**2) ** -0.5
        assert torch.allclose(moved[i].flatten(), xi * d)


def test_orthogonal_task_vectors_lie_on_their_ellipsoid() -> None:
    vectors = torch.zeros(2, 1, 4)
    vectors[0, 0, 0], vectors[1, 0, 2] = 3.0, 0.5
    for scale in (0.1, 0.3):
        found = merged(MagicWeights(scale, "ellipsoid"), torch.zeros(1, 4), vectors)
        assert float((found[0, 0] / 3.0) ** 2 + (found[0, 2] / 0.5) ** 2) == pytest.approx(1.0)
    one = merged(MagicWeights(0.3, "ellipsoid"), torch.zeros(1, 4), vectors[:1])
    assert torch.allclose(one, vectors[0])


def test_an_unknown_surface_is_refused() -> None:
    with pytest.raises(SimoError, match="unknown surface 'cube' of magic-weights; known: sphere, ellipsoid"):
        MagicWeights(surface="cube")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (5,), (1, 4, 3)])
def test_parameters_without_rows_are_added_as_in_task_arithmetic(shape: tuple[int, ...]) -> None:
    base, vectors = torch.randn(shape), torch.randn(3, *shape)
    parameter = Parameter("norm.weight", base, tuple(base + v for v in vectors))
    assert torch.allclose(MagicWeights(0.3).merge(parameter), TaskArithmetic(0.3).merge(parameter), atol=1e-6)


def test_equal_experts_and_a_single_one_come_back_in_matrices() -> None:
    base, vector = torch.randn(4, 6), torch.randn(4, 6)
    for count in (1, 3):
        assert torch.allclose(merged(MagicWeights(0.2), base, vector.expand(count, -1, -1)), base + vector, atol=1e-6)


def test_opposite_and_absent_task_vectors_leave_the_base() -> None:
    base, vector = torch.randn(4, 6), torch.ones(4, 6)
    for vectors in (torch.stack([vector, -vector]), torch.zeros(2, 4, 6)):
        parameter = Parameter("a", torch.zeros(4, 6), tuple(vectors))
        for surface in get_args(Surface):
            assert torch.equal(MagicWeights(surface=surface).merge(parameter), torch.zeros(4, 6))
            assert torch.equal(merged(MagicWeights(surface=surface), base, torch.zeros(2, 4, 6)), base)


@pytest.mark.parametrize(
    ("scale", "module", "calibrated"),
    [(0.1, "fc1", True), (0.1, "fc2", False), (3.0, "fc1", False), (3.0, "fc2", True)],  # 0.1 is short, 3.0 long
)
def test_sensitive_matrices_are_only_scaled_down_and_others_only_up(
    scale: float, module: str, calibrated: bool
) -> None:
    base, vectors, name = torch.zeros(4, 6), torch.rand(3, 4, 6), f"blocks.0.mlp.{module}.weight"
    found = merged(MagicWeights(scale, sensitive=("fc2",)), base, vectors, name)
    free = merged(MagicWeights(scale), base, vectors, name)
    assert not torch.allclose(free, scale * vectors.sum(0))
    assert torch.allclose(found, free if calibrated else scale * vectors.sum(0))


@pytest.mark.parametrize("method", [Magic, MagicWeights])
def test_a_scale_that_is_not_finite_is_refused(method: type[Magic]) -> None:
    with pytest.raises(SimoError, match=f"scale of {method.name} must be a finite number"):
        method(scale=math.nan)


@pytest.mark.parametrize("method", [Magic, MagicWeights])
def test_one_sensitive_module_need_not_be_in_a_list(method: type[Magic]) -> None:
    assert method(sensitive="attn") == method(sensitive=("attn",))  # type: ignore[arg-type]


def test_the_options_survive_json() -> None:
    for method in (Magic(0.2, True, ("fc2",)), MagicWeights(0.2, "ellipsoid", ("fc2",))):
        assert type(method)(**json.loads(json.dumps(method.parameters()))) == method
