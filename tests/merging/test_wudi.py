"""WUDI-Merging: the steps are those of automatic differentiation, the exact solver finds where they lead."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import Parameter
from simo_merge.merging.spectral.wudi import Wudi


def merged(method: Wudi, base: Tensor, vectors: Tensor) -> Tensor:
    return method.merge(Parameter("blocks.0.weight", base, tuple(base + vector for vector in vectors)))


def loss(candidate: Tensor, vectors: Tensor) -> Tensor:
    return sum(((candidate - v) @ v.T).square().sum() / v.square().sum() for v in vectors)  # type: ignore[return-value]


def random_vectors(count: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(count, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_wudi(vectors: Tensor, steps: int, learning_rate: float) -> Tensor:
    candidate = vectors.sum(0).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([candidate], lr=learning_rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(candidate, vectors).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return candidate.detach()


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (9, 4)])
@pytest.mark.parametrize("size", [1e-2, 1e-8])  # the smaller's gradients are as small as Adam's epsilon
def test_the_steps_are_those_of_adam_on_the_loss(rows: int, columns: int, size: float) -> None:
    vectors, base = size * random_vectors(3, rows, columns), torch.zeros(rows, columns, dtype=torch.float64)
    expected = slow_wudi(vectors, 50, 1e-2 * size)
    assert (expected - vectors.sum(0)).abs().max() > 0.01 * size
    found = merged(Wudi(steps=50, learning_rate=1e-2 * size, scale=0.9), base, vectors)
    assert torch.allclose(found, 0.9 * expected, rtol=0, atol=1e-7 * size)


def test_many_steps_lead_to_the_exact_solution() -> None:
    vectors = random_vectors(2, 12, 5)
    exact = Wudi(solver="exact", ridge=1e-12).merge_matrix(vectors)
    found = Wudi(steps=4000, learning_rate=3e-3).merge_matrix(vectors)
    assert torch.allclose(found, exact, atol=1e-4)


def test_where_the_loss_leaves_weights_free_the_exact_solution_is_the_smallest() -> None:
    vectors = random_vectors(2, 3, 12)
    terms = [(v, v.T @ v / v.square().sum()) for v in vectors]
    smallest = sum(v @ a for v, a in terms) @ torch.linalg.pinv(sum(a for _, a in terms), rtol=1e-10)
    assert torch.allclose(Wudi(solver="exact", ridge=1e-8).merge_matrix(vectors), smallest, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_near_the_exact_solution_interferes_less(seed: int) -> None:
    vectors = random_vectors(3, 8, 6)
    exact = Wudi(solver="exact", ridge=1e-12).merge_matrix(vectors)
    moved = exact + 0.1 * random_vectors(1, 8, 6, seed)[0]
    assert loss(exact, vectors) < loss(moved, vectors)
    assert loss(exact, vectors) < loss(vectors.mean(0), vectors)


def test_task_vectors_of_disjoint_inputs_are_summed() -> None:
    vectors = torch.zeros(2, 4, 6, dtype=torch.float64)
    vectors[0, :, :3], vectors[1, :, 3:] = random_vectors(1, 4, 3)[0], random_vectors(1, 4, 3, seed=1)[0]
    for method in (Wudi(), Wudi(solver="exact", ridge=1e-12)):
        assert torch.allclose(method.merge_matrix(vectors), vectors.sum(0), atol=1e-6)


def test_one_expert_comes_back_and_so_do_equal_ones() -> None:
    vector = random_vectors(1, 6, 4)
    assert torch.allclose(Wudi().merge_matrix(vector), vector[0], atol=1e-9)
    equal = vector.expand(3, -1, -1)
    assert torch.allclose(Wudi(solver="exact", ridge=1e-12).merge_matrix(equal), vector[0], atol=1e-6)


def test_the_order_of_the_experts_changes_nothing() -> None:
    vectors = random_vectors(4, 6, 5)
    for method in (Wudi(steps=20), Wudi(solver="exact")):
        assert torch.allclose(method.merge_matrix(vectors[[2, 0, 3, 1]]), method.merge_matrix(vectors), atol=1e-8)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2, 2)])
def test_what_is_no_matrix_is_averaged(shape: tuple[int, ...]) -> None:
    base, vectors = torch.randn(shape), torch.randn(3, *shape)
    assert torch.allclose(merged(Wudi(scale=0.5), base, vectors), base + 0.5 * vectors.mean(0), atol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "exact"])
@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (4, 1), (1, 1)])
def test_task_vectors_of_zeros_give_the_base_and_one_among_others_is_ignored(
    solver: str, shape: tuple[int, int]
) -> None:
    method = Wudi(solver=solver)  # type: ignore[arg-type]
    base, zero, other = torch.randn(shape), torch.zeros(shape), torch.randn(shape)
    assert torch.equal(merged(method, base, torch.stack([zero, zero])), base)
    assert torch.allclose(merged(method, base, torch.stack([zero, other])), base + other, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "newton"}, "unknown solver 'newton' of wudi; known: adam, exact"),
        ({"steps": -1}, "steps of wudi must be a whole number, 0 or more, got -1"),
        ({"steps": 100.0}, "steps of wudi must be a whole number, 0 or more, got 100.0"),
        ({"steps": "1e2"}, "steps of wudi must be a whole number, 0 or more, got '1e2'"),
        ({"learning_rate": 0.0}, "learning rate of wudi must be above 0"),
        ({"ridge": 0.0}, "ridge of wudi must be above 0"),
        ({"scale": math.nan}, "scale of wudi must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        Wudi(**options)  # type: ignore[arg-type]


def test_the_options_survive_json() -> None:
    method = Wudi("exact", 10, 1e-4, 1e-3, 0.9)
    assert Wudi(**json.loads(json.dumps(method.parameters()))) == method


def test_a_ridge_too_small_for_the_task_vectors_is_refused() -> None:
    low_rank = random_vectors(1, 40, 2)[0] @ random_vectors(1, 2, 30, seed=1)[0]
    with pytest.raises(
        SimoError, match=r"with a ridge of 1e-30 the least squares of a layer with 30 inputs .* raise ridge"
    ):
        merged(Wudi(solver="exact", ridge=1e-30), torch.zeros(40, 30), low_rank[None].float())
