"""Masks of tasks on one merged vector: TALL-masks, consensus and EMR, against their formulas written out with loops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MergeMethod, Parameter, TaskArithmetic, TaskSpecificMethod, merge_states
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.elementwise.emr import Emr
from simo_merge.merging.elementwise.tall import Consensus, TallMasks
from simo_merge.merging.elementwise.ties import Ties
from tests.merging.random_experts import (
    base_of,
    close,
    flat,
    grid_parameters,
    merged,
    random_parameters,
    reordered,
    vectors_of,
    with_vectors,
)
from tests.merging.test_ties import entry_by_hand, trimmed_by_hand

Numbers = list[float]


def for_tasks(method: TaskSpecificMethod, parameters: Sequence[Parameter]) -> Tensor:
    """(T, number of all entries), in float64."""
    statistics = method.statistics(lambda: iter(parameters))
    results = [method.merge_for_tasks(parameter, statistics) for parameter in parameters]
    for parameter, result in zip(parameters, results, strict=True):
        assert result.shape == (parameter.count, *parameter.base.shape)
        assert result.dtype == parameter.base.dtype
    return torch.stack([flat([result[t] for result in results]) for t in range(parameters[0].count)])


def multi_task_by_hand(vectors: list[Numbers], kind: str, density: float) -> Numbers:
    if kind == "task-arithmetic":
        return [sum(values) for values in zip(*vectors, strict=True)]
    trimmed = [trimmed_by_hand(vector, density) for vector in vectors]
    return [entry_by_hand(list(values), "mass", "sum") for values in zip(*trimmed, strict=True)]


def masks_by_hand(vectors: list[Numbers], merged: Numbers, lam: Sequence[float]) -> list[list[bool]]:
    return [
        [abs(v) >= own * abs(m - v) for v, m in zip(vector, merged, strict=True)]
        for vector, own in zip(vectors, lam, strict=True)
    ]


@pytest.mark.parametrize(("vector", "density"), [("task-arithmetic", 0.3), ("ties", 0.3), ("ties", 1.0)])
@pytest.mark.parametrize("lam", [0.4, (0.2, 0.9, 1.5)])
@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
def test_tall_masks_follow_the_formula(vector: str, density: float, lam: float | tuple[float, ...], grid: bool) -> None:
    parameters = random_parameters(1, 3, grid)
    method = TallMasks(lam, vector, density)
    vectors = vectors_of(parameters)
    whole = multi_task_by_hand(vectors, vector, density)
    masks = masks_by_hand(vectors, whole, lam if isinstance(lam, tuple) else (lam,) * 3)
    base = base_of(parameters).tolist()
    expected = [[b + m * v for b, m, v in zip(base, mask, whole, strict=True)] for mask in masks]
    assert close(for_tasks(method, parameters), expected)
    assert close(merged(method, parameters), [b + v for b, v in zip(base, whole, strict=True)])


@pytest.mark.parametrize("vector", ["task-arithmetic", "ties"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
def test_consensus_keeps_what_k_tasks_select(vector: str, k: int, grid: bool) -> None:
    parameters = random_parameters(2, 3, grid)
    vectors = vectors_of(parameters)
    whole = multi_task_by_hand(vectors, vector, 0.3)
    lam = {1: 4.0, 2: 1.0, 3: 0.5}[k]
    masks = masks_by_hand(vectors, whole, (lam,) * 3)
    chosen = [sum(column) >= k for column in zip(*masks, strict=True)]
    assert 0 < sum(chosen) < len(chosen)
    expected = [b + 0.7 * c * v for b, c, v in zip(base_of(parameters).tolist(), chosen, whole, strict=True)]
    assert close(merged(Consensus(lam, vector, 0.3, k, 0.7), parameters), expected)


@given(grid_parameters(1, 1))
def test_one_expert_is_given_back_by_its_mask(parameters: list[Parameter]) -> None:
    expert = flat([parameter.experts[0] for parameter in parameters])
    for method in (TallMasks(), Emr()):
        assert close(for_tasks(method, parameters)[0], expert)


@given(grid_parameters(1, 1), st.integers(2, 4))
def test_emr_gives_equal_experts_back(parameters: list[Parameter], count: int) -> None:
    equal = reordered(parameters, [0] * count)
    expert = flat([parameter.experts[0] for parameter in parameters])
    for own in for_tasks(Emr(), equal):
        assert close(own, expert)


def test_every_entry_selected_is_task_arithmetic_or_ties() -> None:
    parameters = random_parameters(3, 3)
    assert close(merged(Consensus(1e-9, k=1, scale=0.3), parameters), merged(TaskArithmetic(0.3), parameters))
    ties = Ties(0.2, combine="sum", scale=0.3)
    assert close(merged(Consensus(1e-9, "ties", k=1, scale=0.3), parameters), merged(ties, parameters))


# -- EMR --------------------------------------------------------------------------------------------------------


def emr_by_hand(parameters: list[Parameter]) -> tuple[Numbers, list[Numbers]]:
    vectors, base = vectors_of(parameters), base_of(parameters).tolist()
    unified = [entry_by_hand(list(values), "mass", "max") for values in zip(*vectors, strict=True)]
    tasks = []
    for vector in vectors:
        masked = [u if v * u > 0 else 0.0 for v, u in zip(vector, unified, strict=True)]
        total = sum(abs(m) for m in masked)
        rescale = sum(abs(v) for v in vector) / total if total else 1.0
        tasks.append([b + rescale * m for b, m in zip(base, masked, strict=True)])
    return [b + u for b, u in zip(base, unified, strict=True)], tasks


@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_emr_follows_the_formula(count: int, grid: bool) -> None:
    parameters = random_parameters(count, count, grid)
    shared, tasks = emr_by_hand(parameters)
    assert close(merged(Emr(), parameters), shared)
    assert close(for_tasks(Emr(), parameters), tasks)


@given(grid_parameters())
def test_small_models_of_any_kind_follow_emr(parameters: list[Parameter]) -> None:
    assert close(for_tasks(Emr(), parameters), emr_by_hand(parameters)[1])


def test_the_rescaled_vector_is_as_long_as_the_tasks_own_over_the_whole_model() -> None:
    parameters = random_parameters(7, 3)
    for own, vector in zip(for_tasks(Emr(), parameters), vectors_of(parameters), strict=True):
        assert (own - base_of(parameters)).abs().sum() == pytest.approx(sum(map(abs, vector)), rel=1e-5)


def test_a_task_whose_sign_is_never_elected_keeps_the_base() -> None:
    parameter = Parameter("w", torch.zeros(2), (torch.tensor([3.0, -3.0]), torch.tensor([-1.0, 1.0])))
    assert for_tasks(Emr(), [parameter]).tolist() == [[3.0, -3.0], [0.0, 0.0]]


# -- all of them ------------------------------------------------------------------------------------------------

TASK_SPECIFIC: list[TaskSpecificMethod] = [TallMasks(), TallMasks(vector="ties"), Emr()]
SHARED: list[MergeMethod] = [*TASK_SPECIFIC, Consensus(), Consensus(vector="ties")]


@pytest.mark.parametrize("method", SHARED, ids=repr)
def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, method: MergeMethod) -> None:
    parameters = random_parameters(3, 3, shapes=((70, 30), (900,)))
    whole = merged(method, parameters)
    tasks = for_tasks(method, parameters) if isinstance(method, TaskSpecificMethod) else whole
    monkeypatch.setattr(pieces, "_CPU_SPAN", 64)
    monkeypatch.setattr(pieces, "_THREADED", 128)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(merged(method, parameters), whole)
    if isinstance(method, TaskSpecificMethod):
        assert close(for_tasks(method, parameters), tasks)


@pytest.mark.parametrize("method", SHARED, ids=repr)
def test_experts_that_are_the_base_give_the_base_bit_for_bit(method: MergeMethod) -> None:
    parameters = with_vectors(random_parameters(1), 0.0)
    assert torch.equal(merged(method, parameters), base_of(parameters))
    if isinstance(method, TaskSpecificMethod):
        assert torch.equal(for_tasks(method, parameters), base_of(parameters).expand(3, -1))


@given(st.sampled_from(TASK_SPECIFIC), grid_parameters(2, 4), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_is_the_order_of_the_encoders(
    method: TaskSpecificMethod, parameters: list[Parameter], random: object
) -> None:
    order = list(range(parameters[0].count))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert close(for_tasks(method, reordered(parameters, order)), for_tasks(method, parameters)[order])


@given(grid_parameters(2, 4), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_changes_no_consensus(parameters: list[Parameter], random: object) -> None:
    order = list(range(parameters[0].count))
    random.shuffle(order)  # type: ignore[attr-defined]
    for vector in ("task-arithmetic", "ties"):
        method = Consensus(vector=vector)
        assert close(merged(method, reordered(parameters, order)), merged(method, parameters))


def test_every_expert_gets_a_state_dict_of_its_own() -> None:
    parameters = random_parameters(2, 3)
    states = merge_states(
        {p.name: p.base for p in parameters}, [{p.name: p.experts[t] for p in parameters} for t in range(3)], Emr()
    )
    assert close(torch.stack([flat(list(state.values())) for state in states.by_expert]), emr_by_hand(parameters)[1])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TallMasks, {"lam": 0.0}, "lam of tall-masks must be above 0"),
        (TallMasks, {"lam": [0.4, -1]}, "must be above 0"),
        (TallMasks, {"lam": []}, "empty list"),
        (TallMasks, {"vector": "sum"}, "unknown vector 'sum' of tall-masks; known: task-arithmetic, ties"),
        (TallMasks, {"density": 2}, r"density of tall-masks is a share in \(0, 1\]"),
        (Consensus, {"k": 0}, "k of consensus must be a whole number, 1 or more, got 0"),
        (Consensus, {"k": 1.5}, "whole number"),
        (Consensus, {"scale": float("nan")}, "finite"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[MergeMethod], options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        kind(**options)


def test_options_for_another_number_of_experts_are_refused() -> None:
    parameters = random_parameters(0, 3)
    with pytest.raises(SimoError, match="lam of tall-masks has 2 numbers, but there are 3 experts"):
        for_tasks(TallMasks((0.2, 0.4)), parameters)
    with pytest.raises(SimoError, match="k of consensus is 4, but there are 3 experts"):
        merged(Consensus(k=4), parameters)
