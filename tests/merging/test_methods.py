"""Merge methods on one tensor: against their formulas in float64, and identities that hold for all inputs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MERGE_METHODS, MergeMethod, Parameter, TaskArithmetic, WeightAverage, merge_method


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


@pytest.mark.parametrize("name", sorted(MERGE_METHODS))
def test_a_method_is_found_by_its_name_and_rebuilt_from_its_recorded_parameters(name: str) -> None:
    method = merge_method(name)
    assert method.name == name
    assert merge_method(name, json.loads(json.dumps(method.parameters()))) == method


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match=r"'ties'; known: task-arithmetic, weight-average"):
        merge_method("ties")


def test_a_parameter_that_the_method_does_not_have_is_refused() -> None:
    with pytest.raises(SimoError, match=r"'weight-average' does not take .*scale"):
        merge_method("weight-average", {"scale": 0.3})


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_coefficient_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(SimoError, match=f"finite number, got {scale}"):
        TaskArithmetic(scale)
