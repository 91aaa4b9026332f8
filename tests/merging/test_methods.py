"""Linear merges against their formulas in float64, and what holds for every method of the registry."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import (
    MERGE_METHODS,
    AdaMerging,
    Atlas,
    Breadcrumbs,
    Consensus,
    Dare,
    DataMergeMethod,
    Fisher,
    IsoCts,
    Lines,
    Lot,
    Magic,
    MagnitudeMask,
    MergeMethod,
    Parameter,
    RegMean,
    Slerp,
    Subspace,
    TaskArithmetic,
    TaskSpecificMethod,
    Ties,
    WeightAverage,
    Wudi,
    merge_method,
    merge_states,
)
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.elementwise.linear import PreferenceSoup
from simo_merge.merging.parameter import layer_of
from tests.merging.random_experts import base_of, merge_all, random_parameters, with_vectors
from tests.merging.random_experts import merged as merged_together


@st.composite
def base_and_experts(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """base (n,) and experts (T, n), of very different magnitudes."""
    count, size = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    number = st.floats(-1e3, 1e3, width=32)
    values = draw(st.lists(number, min_size=(count + 1) * size, max_size=(count + 1) * size))
    rows = torch.tensor(values).view(count + 1, size)
    return rows[0], rows[1:]


def merged(method: MergeMethod, base: Tensor, experts: Tensor) -> Tensor:
    parameter = Parameter("blocks.0.weight", base, tuple(experts))
    return method.merge(parameter, method.statistics(lambda: iter([parameter])))


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=2e-3)  # of values up to 1e3


@given(base_and_experts(), st.floats(-1, 2))
def test_task_arithmetic_is_the_base_plus_the_scaled_sum_of_task_vectors(
    given: tuple[Tensor, Tensor], scale: float
) -> None:
    base, experts = given
    expected = base.double()
    for expert in experts:
        expected = expected + scale * (expert.double() - base.double())
    assert close(merged(TaskArithmetic(scale), base, experts), expected)


@given(base_and_experts())
def test_the_weight_average_is_the_mean_of_the_experts(given: tuple[Tensor, Tensor]) -> None:
    base, experts = given
    assert close(merged(WeightAverage(), base, experts), experts.double().mean(0))


@given(base_and_experts())
def test_the_weight_average_is_task_arithmetic_with_coefficient_one_over_t(given: tuple[Tensor, Tensor]) -> None:
    base, experts = given
    average = merged(WeightAverage(), base, experts)
    assert close(merged(TaskArithmetic(1 / len(experts)), base, experts), average)


@given(base_and_experts())
def test_coefficient_0_gives_the_base_bit_for_bit(given: tuple[Tensor, Tensor]) -> None:
    base, experts = given
    assert torch.equal(merged(TaskArithmetic(0.0), base, experts), base)


@given(base_and_experts(), st.integers(2, 6))
def test_equal_experts_with_coefficient_one_over_t_give_the_expert(given: tuple[Tensor, Tensor], count: int) -> None:
    base, experts = given
    equal = experts[:1].repeat(count, 1)
    assert close(merged(TaskArithmetic(1 / count), base, equal), experts[0])


@given(base_and_experts(), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_changes_nothing(given: tuple[Tensor, Tensor], random: object) -> None:
    base, experts = given
    order = list(range(len(experts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for method in (WeightAverage(), TaskArithmetic(0.4)):
        assert close(merged(method, base, experts[order]), merged(method, base, experts))


# -- coefficients of tasks and layers ---------------------------------------------------------------------------

BY_LAYER = ((0.1, 0.2, 0.3), (1.0, 0.0, 0.5), (-1.0, 2.0, 0.25), (0.3, 0.3, 0.3))


@given(base_and_experts(), st.data())
def test_every_task_may_have_its_own_coefficient(given: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    base, experts = given
    scale = data.draw(st.tuples(*[st.floats(-1, 2)] * len(experts)))
    expected = base.double()
    for weight, expert in zip(scale, experts, strict=True):
        expected = expected + weight * (expert.double() - base.double())
    assert close(merged(TaskArithmetic(scale), base, experts), expected)


def test_every_layer_and_task_may_have_its_own_coefficient() -> None:
    parameters = random_parameters(0, 3)
    for parameter, found in zip(parameters, merge_all(TaskArithmetic(BY_LAYER), parameters), strict=True):
        expected = parameter.base.double()
        for weight, expert in zip(BY_LAYER[parameter.layer], parameter.experts, strict=True):
            expected = expected + weight * (expert.double() - parameter.base.double())
        assert torch.allclose(found.double(), expected, atol=1e-6)


def test_coefficients_that_are_all_the_same_are_one_coefficient() -> None:
    parameters = random_parameters(1, 3)
    one = merged_together(TaskArithmetic(0.3), parameters)
    assert torch.equal(merged_together(TaskArithmetic((0.3,) * 3), parameters), one)
    assert torch.equal(merged_together(TaskArithmetic(((0.3,) * 3,) * 4), parameters), one)


@pytest.mark.parametrize("scale", [0.5, (0.5, 1.0), ((0.5, 1.0), (0.0, 1.0))])
def test_coefficients_survive_a_record_in_json(scale: Any) -> None:
    record = json.loads(json.dumps(TaskArithmetic(scale).parameters()))
    assert merge_method("task-arithmetic", record) == TaskArithmetic(scale)
    assert merge_method("task-arithmetic", record).parameters() == {"scale": scale}


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ((0.1, 0.2), "scale of task-arithmetic has 2 numbers, but there are 3 experts; give one each"),
        ((0.1, 0.2, 0.3, 0.4), "has 4 numbers, but there are 3 experts"),
        (((0.1, 0.2),) * 4, "has 2 numbers, but there are 3 experts"),
        (((0.1, 0.2, 0.3),) * 5, "has 5 rows, but the encoder has 4 layers"),
        (((0.1, 0.2, 0.3),) * 3, "has 3 rows, but the encoder has 4 layers .*; give a row for each"),
    ],
)
def test_coefficients_for_other_experts_or_layers_are_refused(scale: Any, message: str) -> None:
    with pytest.raises(SimoError, match=message):
        merge_all(TaskArithmetic(scale), random_parameters(0, 3))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (float("nan"), "finite number, got nan"),
        (float("inf"), "finite number, got inf"),
        ("0.3", "finite number, got 0.3"),
        ((0.1, None), "finite number, got None"),
        ((), "empty list"),
        ([[0.1, 0.2], [0.1]], "rows of different lengths"),
        ([[0.1, 0.2], 0.3], "rows of different lengths"),
        ([[0.1, 0.2], [0.3, float("inf")]], "finite number, got inf"),
    ],
)
def test_coefficients_that_are_no_numbers_are_refused(scale: Any, message: str) -> None:
    with pytest.raises(SimoError, match=message):
        TaskArithmetic(scale)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        # timm
        ("cls_token", 0), ("reg_token", 0), ("pos_embed", 0), ("patch_embed.proj.weight", 0), ("norm_pre.weight", 0),
        ("rope.freqs", 0), ("rel_pos_bias.relative_position_bias_table", 0), ("blocks.3.attn.rel_pos_bias.table", 4),
        ("norm.weight", 13), ("fc_norm.bias", 13), ("head.weight", 13), ("attn_pool.latent", 13),
        # open_clip
        ("visual.class_embedding", 0), ("visual.positional_embedding", 0), ("visual.conv1.weight", 0),
        ("visual.ln_pre.bias", 0), ("visual.transformer.resblocks.11.ln_1.weight", 12), ("visual.ln_post.weight", 13),
        ("visual.proj", 13),
        # DINOv2 and DINOv3 as published
        ("register_tokens", 0), ("mask_token", 0), ("storage_tokens", 0), ("rope_embed.periods", 0),
        ("blocks.0.ls1.gamma", 1),
    ],
)  # fmt: skip
def test_parameters_lie_before_in_or_after_the_blocks_by_their_names(name: str, layer: int) -> None:
    assert layer_of(name, 12) == layer


# -- a soup by preference ---------------------------------------------------------------------------------------


@given(base_and_experts(), st.data())
def test_a_soup_is_the_mean_of_the_experts_weighted_by_preference(
    given: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    base, experts = given
    weights = data.draw(st.tuples(*[st.floats(0.125, 8)] * len(experts)))
    expected = sum(w * expert.double() for w, expert in zip(weights, experts, strict=True)) / sum(weights)
    assert close(merged(PreferenceSoup(weights), base, experts), torch.as_tensor(expected))


@given(base_and_experts())
def test_a_soup_without_preference_is_the_weight_average(given: tuple[Tensor, Tensor]) -> None:
    base, experts = given
    assert close(merged(PreferenceSoup(), base, experts), merged(WeightAverage(), base, experts))


@given(base_and_experts())
def test_a_soup_for_one_task_alone_is_its_expert(given: tuple[Tensor, Tensor]) -> None:
    base, experts = given
    for t, expert in enumerate(experts):
        weights = tuple(3.0 * (i == t) for i in range(len(experts)))
        assert close(merged(PreferenceSoup(weights), base, experts), expert)


@pytest.mark.parametrize("weights", [(0.5, -0.1), (0.0, 0.0), ()])
def test_weights_that_are_no_preference_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(SimoError, match="must not be negative, nor all zero, got"):
        PreferenceSoup(weights)


def test_a_preference_among_other_tasks_is_refused() -> None:
    with pytest.raises(SimoError, match="weights of preference-soup has 2 numbers, but there are 3 experts"):
        merge_all(PreferenceSoup((0.5, 0.5)), random_parameters(0, 3))


# -- how linear merges are computed -----------------------------------------------------------------------------


def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = random_parameters(3, 3, shapes=((70, 30), (900,)))
    whole = merged_together(TaskArithmetic(0.4), parameters)
    monkeypatch.setattr(pieces, "_CPU_SPAN", 64)
    monkeypatch.setattr(pieces, "_THREADED", 128)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(merged_together(TaskArithmetic(0.4), parameters), whole)


def test_small_task_vectors_on_a_large_base_lose_nothing_but_the_last_rounding() -> None:
    base = torch.full((1000,), 100.0)
    experts = torch.stack(
        [base + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(t)) for t in range(8)]
    )
    exact = base.double() + 0.3 * (experts.double() - base.double()).sum(0)
    assert (merged(TaskArithmetic(0.3), base, experts).double() - exact).abs().max() <= 2**-18  # half a step at 100


def test_tensors_that_are_not_contiguous_merge_as_others_do() -> None:
    base, expert = torch.arange(12.0).view(3, 4), torch.arange(12.0).flip(0).view(3, 4)
    parameter = Parameter("w", base.T, (expert.T,))
    assert torch.equal(TaskArithmetic(1.0).merge(parameter), expert.T)


# -- the registry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MERGE_METHODS))
def test_a_method_is_found_by_its_name_and_rebuilt_from_its_recorded_parameters(name: str) -> None:
    method = merge_method(name)
    assert method.name == name
    assert merge_method(name, json.loads(json.dumps(method.parameters()))) == method


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match=r"'tie'; known: .*task-arithmetic.*ties.*weight-average"):
        merge_method("tie")


def test_a_parameter_that_the_method_does_not_have_is_refused() -> None:
    with pytest.raises(SimoError, match=r"'weight-average' does not take .*scale"):
        merge_method("weight-average", {"scale": 0.3})


DATA_FREE = sorted(name for name, method in MERGE_METHODS.items() if not issubclass(method, DataMergeMethod))


def copies(parameters: list[Parameter]) -> list[Tensor]:
    return [tensor.clone() for p in parameters for tensor in (p.base, *p.experts)]


@pytest.mark.parametrize("name", DATA_FREE)
def test_no_method_changes_base_or_experts(name: str) -> None:
    method, parameters = merge_method(name), random_parameters(0, 2)
    before = copies(parameters)
    statistics = method.statistics(lambda: iter(parameters))
    for parameter in parameters:
        results = [method.merge(parameter, statistics)]
        if isinstance(method, TaskSpecificMethod):
            results.append(method.merge_for_tasks(parameter, statistics))
        for result in results:
            assert torch.isfinite(result).all()
            result.zero_()
    assert all(map(torch.equal, copies(parameters), before))


@pytest.mark.parametrize("name", DATA_FREE)
def test_every_method_gives_the_base_for_experts_that_are_the_base(name: str) -> None:
    parameters = with_vectors(random_parameters(1, 2), 0.0)
    assert torch.allclose(merged_together(merge_method(name), parameters), base_of(parameters), atol=1e-6)


@pytest.mark.parametrize("name", DATA_FREE)
def test_float64_parameters_are_merged_in_float64(name: str) -> None:
    parameters = random_parameters(1, 2)
    states = [
        {p.name: tensor.double() * (1 + 2.0**-40) for p in parameters for tensor in [(p.base, *p.experts)[i]]}
        for i in range(3)
    ]
    found = merge_states(states[0], states[1:], merge_method(name)).shared
    assert all(value.dtype == torch.float64 for value in found.values())
    unmoved = merge_states(states[0], [states[0]] * 2, merge_method(name)).shared
    assert all(torch.allclose(value, states[0][key], rtol=1e-14, atol=0) for key, value in unmoved.items())


NUMPY = (
    TaskArithmetic(np.float32(0.25)),
    PreferenceSoup(np.array([0.25, 0.5], dtype=np.float32)),  # type: ignore[arg-type]
    Ties(np.float32(0.25), scale=np.float32(0.5)),
    Dare(np.float32(0.25), seed=np.int64(3)),  # type: ignore[arg-type]
    Breadcrumbs(np.float32(0.25), np.float32(0.5)),
    MagnitudeMask(np.float32(0.25)),
    Slerp(np.float32(0.25)),
    Lines(np.float32(0.25), np.float32(0.5)),
    Consensus(np.float32(0.25), density=np.float32(0.5), k=np.int64(1), scale=np.float32(0.5)),  # type: ignore[arg-type]
    IsoCts(np.float32(0.5), np.float32(0.75)),
    Wudi(steps=np.int64(3), learning_rate=np.float32(0.25), ridge=np.float32(0.5)),  # type: ignore[arg-type]
    RegMean(np.float32(0.25), np.float32(0.5)),
    Subspace(np.int64(3), np.float32(0.25)),  # type: ignore[arg-type]
    Lot(np.float32(0.25)),
    Fisher(images=np.int64(3), floor=np.float32(0.25)),  # type: ignore[arg-type]
    Magic(np.float32(0.25)),
    AdaMerging(steps=np.int64(3), lr=np.float32(0.25), initial=np.float32(0.5), density=np.float32(0.5)),  # type: ignore[arg-type]
    Atlas(weight_decay=np.float32(0.25), batch_size=np.int64(3)),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("method", NUMPY, ids=lambda m: m.name)
def test_numbers_of_numpy_are_recorded_as_plain_ones(method: MergeMethod) -> None:
    assert type(method)(**json.loads(json.dumps(method.parameters()))) == method


def on_a_gpu(parameter: Parameter) -> Parameter:
    experts = tuple(expert.cuda() for expert in parameter.experts)
    return Parameter(parameter.name, parameter.base.cuda(), experts, parameter.layer, parameter.layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", DATA_FREE)
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    method, parameters = merge_method(name), random_parameters(0, 2, shapes=((70, 30), (900,), (), (1,)))
    expected = merged_together(method, parameters)
    found = merged_together(method, [on_a_gpu(parameter) for parameter in parameters])
    assert torch.allclose(found.cpu(), expected, atol=1e-5)
