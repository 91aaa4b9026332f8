"""Spherical interpolation between two experts, against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import Parameter, WeightAverage
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.elementwise.slerp import Slerp
from tests.merging.random_experts import base_of, close, flat, grid_parameters, merged, random_parameters, with_vectors


def slerp_by_hand(u: Tensor, v: Tensor, t: float) -> Tensor:
    u, v = u.double(), v.double()
    if u.norm() == 0 or v.norm() == 0:
        return (1 - t) * u + t * v
    cosine = float((u * v).sum() / u.norm() / v.norm())
    if abs(cosine) > 0.9995:
        return (1 - t) * u + t * v
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)


def expected(parameters: list[Parameter], t: float, between: str) -> Tensor:
    out = []
    for parameter in parameters:
        origin = parameter.base.double() if between == "task_vectors" else torch.zeros_like(parameter.base).double()
        u, v = (expert.double() - origin for expert in parameter.experts)
        out.append(origin + slerp_by_hand(u, v, t))
    return flat(out)


@pytest.mark.parametrize("between", ["task_vectors", "weights"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_every_tensor_follows_the_formula(t: float, between: str) -> None:
    for seed in range(3):
        parameters = random_parameters(seed, 2)
        assert close(merged(Slerp(t, between), parameters), expected(parameters, t, between))


@given(grid_parameters(2, 2), st.floats(0, 1), st.sampled_from(["task_vectors", "weights"]))
def test_small_models_of_any_kind_are_finite_and_follow_the_formula(
    parameters: list[Parameter], t: float, between: str
) -> None:
    found = merged(Slerp(t, between), parameters)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, expected(parameters, t, between), atol=1e-4)


def test_the_ends_are_the_experts() -> None:
    parameters = random_parameters(1, 2)
    for between in ("task_vectors", "weights"):
        for t in (0, 1):
            assert close(merged(Slerp(t, between), parameters), flat([p.experts[t] for p in parameters]))


def test_vectors_of_one_length_keep_it_along_the_arc() -> None:
    u, v = torch.tensor([3.0, 4.0]), torch.tensor([-5.0, 0.0])
    for t in (0.1, 0.5, 0.8):
        found = merged(Slerp(t), [Parameter("w", torch.zeros(2), (u, v))])
        assert found.norm() == pytest.approx(5.0)


@pytest.mark.parametrize("factor", [1.0, 1.0001, 3.0, -1.0, -2.0, 0.0])
def test_parallel_opposite_and_zero_vectors_are_interpolated_linearly(factor: float) -> None:
    u = torch.tensor([1.0, -2.0, 0.5])
    found = merged(Slerp(0.25), [Parameter("w", torch.ones(3), (1 + u, 1 + factor * u))])
    assert close(found, 1 + (0.75 + 0.25 * factor) * u)


def test_exchanging_experts_and_t_changes_nothing() -> None:
    there = random_parameters(2, 2)
    back = [Parameter(p.name, p.base, p.experts[::-1]) for p in there]
    assert close(merged(Slerp(0.3), there), merged(Slerp(0.7), back))


def test_experts_that_are_the_base_give_the_base_bit_for_bit() -> None:
    parameters = with_vectors(random_parameters(1, 2), 0.0)
    assert torch.equal(merged(Slerp(), parameters), base_of(parameters))


def test_equal_experts_give_the_expert() -> None:
    parameters = [Parameter(p.name, p.base, p.experts[:1] * 2) for p in random_parameters(3, 1)]
    assert close(merged(Slerp(0.4), parameters), merged(WeightAverage(), parameters))


def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = random_parameters(3, 2, shapes=((70, 30), (900,)))
    whole = merged(Slerp(), parameters)
    monkeypatch.setattr(pieces, "_CPU_SPAN", 64)
    monkeypatch.setattr(pieces, "_THREADED", 128)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert close(merged(Slerp(), parameters), whole)


@pytest.mark.parametrize("count", [1, 3])
def test_other_than_two_experts_are_refused(count: int) -> None:
    with pytest.raises(SimoError, match=f"between two experts, got {count}; merge more"):
        merged(Slerp(), random_parameters(0, count))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 1.5}, r"t of slerp is a share in \[0, 1\], got 1.5"),
        ({"between": "models"}, "unknown between 'models' of slerp; known: task_vectors, weights"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        Slerp(**options)  # type: ignore[arg-type]
