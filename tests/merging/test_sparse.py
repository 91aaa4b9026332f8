"""Task arithmetic on parts of the task vectors: by magnitude, without extremes, and at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MergeMethod, Parameter, TaskArithmetic
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.elementwise.dare import Dare, survivors
from simo_merge.merging.elementwise.sparse import Breadcrumbs, MagnitudeMask
from simo_merge.merging.elementwise.ties import Ties
from tests.merging.random_experts import (
    base_of,
    close,
    flat,
    grid_parameters,
    merge_all,
    merged,
    random_parameters,
    reordered,
    vectors_of,
    with_vectors,
)
from tests.merging.test_ties import entry_by_hand, trimmed_by_hand

SCALES = [0.4, (0.5, -0.25, 2.0), ((0.1, 0.2, 0.3), (1.0, 0.0, 0.5), (-1.0, 2.0, 0.25), (0.3, 0.3, 0.3))]
Numbers = list[float]


def coefficients_by_hand(scale: object, parameter: Parameter) -> list[float]:
    if isinstance(scale, tuple):
        return list(scale[parameter.layer] if isinstance(scale[0], tuple) else scale)
    return [scale] * parameter.count  # type: ignore[list-item]


def sum_by_hand(parameters: list[Parameter], kept: list[Numbers], scale: object) -> Numbers:
    """theta_0 + sum_t s_t kept_t; kept: T lists over all entries."""
    out, at = [], 0
    for parameter in parameters:
        weights = coefficients_by_hand(scale, parameter)
        for value in parameter.base.reshape(-1).tolist():
            out.append(value + sum(w * row[at] for w, row in zip(weights, kept, strict=True)))
            at += 1
    return out


# -- by magnitude -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
@pytest.mark.parametrize("scale", SCALES, ids=["one", "a task", "a layer and task"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_the_magnitude_mask_keeps_the_largest_entries(density: float, scale: object, grid: bool) -> None:
    parameters = random_parameters(1, 3, grid)
    kept = [trimmed_by_hand(vector, density) for vector in vectors_of(parameters)]
    found = merged(MagnitudeMask(density, scale=scale), parameters)  # type: ignore[arg-type]
    assert close(found, sum_by_hand(parameters, kept, scale))
    kept = [
        [x for parameter in parameters for x in trimmed_by_hand(vectors_of([parameter])[t], density)] for t in range(3)
    ]
    found = merged(MagnitudeMask(density, "per_tensor", scale), parameters)  # type: ignore[arg-type]
    assert close(found, sum_by_hand(parameters, kept, scale))


@given(grid_parameters(), st.sampled_from([0.2, 0.6]), st.sampled_from(["global", "per_tensor"]))
def test_one_expert_is_trimmed_as_ties_trims_it(parameters: list[Parameter], density: float, trim: str) -> None:
    alone = reordered(parameters, [0])
    assert close(merged(MagnitudeMask(density, trim, 1.0), alone), merged(Ties(density, trim), alone))


@given(grid_parameters())
def test_everything_kept_is_task_arithmetic(parameters: list[Parameter]) -> None:
    plain = merged(TaskArithmetic(0.3), parameters)
    for method in (MagnitudeMask(1.0), Breadcrumbs(0.0, 0.0), Dare(0.0)):
        assert close(merged(method, parameters), plain)


# -- without extremes -------------------------------------------------------------------------------------------


def crumbs_by_hand(vector: Numbers, outliers: float, smallest: float) -> Numbers:
    ordered = sorted(abs(v) for v in vector)
    count = len(ordered)
    kept = ordered[round(smallest * count) : count - round(outliers * count)]
    kept = kept or [ordered[max(count - 1 - round(outliers * count), 0)]]
    return [v if kept[0] <= abs(v) <= kept[-1] else 0.0 for v in vector]


@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
@pytest.mark.parametrize("scale", SCALES, ids=["one", "a task", "a layer and task"])
@pytest.mark.parametrize(("outliers", "smallest"), [(0.01, 0.85), (0.2, 0.3), (0.0, 0.6), (0.4, 0.0), (0.5, 0.49)])
def test_breadcrumbs_drop_both_ends_of_every_tensor(
    outliers: float, smallest: float, scale: object, grid: bool
) -> None:
    parameters = random_parameters(2, 3, grid)
    kept = [[x for p in parameters for x in crumbs_by_hand(vectors_of([p])[t], outliers, smallest)] for t in range(3)]
    found = merged(Breadcrumbs(outliers, smallest, scale), parameters)  # type: ignore[arg-type]
    assert close(found, sum_by_hand(parameters, kept, scale))


def test_breadcrumbs_count_as_they_say() -> None:
    expert = torch.arange(1.0, 101.0)
    found = merged(Breadcrumbs(0.02, 0.85, 1.0), [Parameter("w", torch.zeros(100), (expert,))])
    assert found.nonzero().squeeze(1).tolist() == list(range(85, 98))


# -- at random --------------------------------------------------------------------------------------------------


def dropped_by_hand(parameters: list[Parameter], method: Dare) -> list[Numbers]:
    rows: list[Numbers] = [[] for _ in parameters[0].experts]
    for parameter in parameters:
        for t, row in enumerate(rows):
            stays = survivors(parameter.base.numel(), method.drop, method.seed, parameter.name, t).tolist()
            vector = vectors_of([parameter])[t]
            row.extend(v / (1 - method.drop) if s else 0.0 for v, s in zip(vector, stays, strict=True))
    return rows


@pytest.mark.parametrize("scale", SCALES, ids=["one", "a task", "a layer and task"])
@pytest.mark.parametrize("drop", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("seed", [0, 7])
def test_dare_sums_the_rescaled_survivors(drop: float, scale: object, seed: int) -> None:
    parameters = random_parameters(4, 3)
    method = Dare(drop, scale=scale, seed=seed)  # type: ignore[arg-type]
    assert close(merged(method, parameters), sum_by_hand(parameters, dropped_by_hand(parameters, method), scale))


@pytest.mark.parametrize(("combine", "disjoint"), [("ties", "sum"), ("ties-mean", "mean")])
@pytest.mark.parametrize("scale", SCALES[:2], ids=["one", "a task"])
def test_dare_ties_elects_signs_among_the_survivors(combine: str, disjoint: str, scale: object) -> None:
    parameters = random_parameters(5, 3)
    method = Dare(0.5, combine, scale)  # type: ignore[arg-type]
    rows = dropped_by_hand(parameters, method)
    weights = coefficients_by_hand(scale, parameters[0])
    changes = [
        entry_by_hand([w * v for w, v in zip(weights, values, strict=True)], "mass", disjoint)
        for values in zip(*rows, strict=True)
    ]
    assert close(merged(method, parameters), base_of(parameters) + torch.tensor(changes, dtype=torch.float64))


def test_the_masks_depend_on_name_and_task_alone_and_not_on_the_order_of_reading() -> None:
    parameters = random_parameters(6, 3)
    method = Dare(0.6, "ties", seed=3)
    there = merge_all(method, parameters)
    back = merge_all(method, parameters[::-1])[::-1]
    assert torch.equal(flat(there), flat(back))


@pytest.mark.parametrize("combine", ["linear", "ties"])
def test_pieces_and_threads_change_no_mask(monkeypatch: pytest.MonkeyPatch, combine: str) -> None:
    parameters = random_parameters(3, 3, shapes=((70, 30), (900,)))
    methods: list[MergeMethod] = [Dare(combine=combine), Breadcrumbs(), MagnitudeMask()]
    whole = [merged(method, parameters) for method in methods]
    monkeypatch.setattr(pieces, "_CPU_SPAN", 64)
    monkeypatch.setattr(pieces, "_THREADED", 128)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for method, expected in zip(methods, whole, strict=True):
        assert torch.equal(merged(method, parameters), expected)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def test_the_share_that_survives_is_as_asked_and_masks_of_tasks_names_and_seeds_are_independent() -> None:
    size = 40_000
    first = survivors(size, 0.9, 0, "blocks.0.weight", 0)
    assert abs(float(first.double().mean()) - 0.1) < 4 * (0.1 * 0.9 / size) ** 0.5
    assert torch.equal(first, survivors(size, 0.9, 0, "blocks.0.weight", 0))
    for seed, name, task in ((0, "blocks.0.weight", 1), (0, "blocks.1.weight", 0), (1, "blocks.0.weight", 0)):
        assert abs(correlation(first, survivors(size, 0.9, seed, name, task))) < 0.03
    assert bool(survivors(size, 0.0, 0, "blocks.0.weight", 0).all())


def test_the_masks_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert survivors(16, 0.5, 0, "blocks.0.weight", 0).int().tolist() == [
        0,
        1,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        1,
        1,
        0,
        0,
    ]


def test_dare_keeps_the_expectation() -> None:
    parameters = [random_parameters(0, 2, shapes=((20,),))[0]]
    mean = torch.stack([merged(Dare(0.5, scale=1.0, seed=seed), parameters) for seed in range(2000)]).mean(0)
    assert torch.allclose(mean, merged(TaskArithmetic(1.0), parameters), atol=0.02)


# -- all of them ------------------------------------------------------------------------------------------------

ALL: list[MergeMethod] = [
    MagnitudeMask(),
    MagnitudeMask(trim="per_tensor"),
    Breadcrumbs(),
    Dare(),
    Dare(combine="ties"),
]


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_experts_that_are_the_base_give_the_base_bit_for_bit(method: MergeMethod) -> None:
    parameters = with_vectors(random_parameters(1), 0.0)
    assert torch.equal(merged(method, parameters), base_of(parameters))


@given(st.sampled_from(ALL[:3]), grid_parameters(), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_changes_nothing(
    method: MergeMethod, parameters: list[Parameter], random: object
) -> None:
    order = list(range(parameters[0].count))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert close(merged(method, reordered(parameters, order)), merged(method, parameters))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MagnitudeMask, {"density": 0}, r"density of magnitude-mask is a share in \(0, 1\], got 0"),
        (MagnitudeMask, {"trim": "layer"}, "known: global, per_tensor"),
        (MagnitudeMask, {"scale": float("nan")}, "finite number, got nan"),
        (Breadcrumbs, {"outliers": -0.1}, r"outliers of breadcrumbs is a share in \[0, 1\), got -0.1"),
        (Breadcrumbs, {"smallest": 1.0}, r"smallest of breadcrumbs is a share in \[0, 1\), got 1.0"),
        (Breadcrumbs, {"outliers": 0.2, "smallest": 0.8}, "would drop everything"),
        (Dare, {"drop": 1.0}, r"drop of dare is a share in \[0, 1\), got 1.0"),
        (Dare, {"combine": "sum"}, "unknown combine 'sum' of dare; known: linear, ties, ties-mean"),
        (Dare, {"seed": 0.5}, "seed of dare must be a whole number, 0 or more, got 0.5"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[MergeMethod], options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        kind(**options)
