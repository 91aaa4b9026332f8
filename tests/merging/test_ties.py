"""TIES against its algorithm written out with loops, and what must hold for all task vectors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.errors import SimoError
from simo_merge.merging import Parameter
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.elementwise.ties import Ties
from tests.merging.random_experts import (
    base_of,
    close,
    grid_parameters,
    merged,
    random_parameters,
    reordered,
    vectors_of,
    with_vectors,
)


def trimmed_by_hand(vector: list[float], density: float) -> list[float]:
    count = max(1, round(density * len(vector)))
    threshold = sorted((abs(v) for v in vector), reverse=True)[count - 1]
    return [v if abs(v) >= threshold else 0.0 for v in vector]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def entry_by_hand(values: list[float], elect: str, combine: str) -> float:
    elected = sign(sum(values) if elect == "mass" else sum(sign(v) for v in values))
    agreeing = [v for v in values if v != 0 and sign(v) == elected]
    if not agreeing:
        return 0.0
    if combine == "max":
        return max(agreeing, key=abs)
    return sum(agreeing) / (len(agreeing) if combine == "mean" else 1)


def ties_by_hand(method: Ties, parameters: list[Parameter]) -> list[float]:
    if method.trim == "per_tensor" and len(parameters) > 1:
        return [x for parameter in parameters for x in ties_by_hand(method, [parameter])]
    vectors = [trimmed_by_hand(vector, method.density) for vector in vectors_of(parameters)]
    changes = [entry_by_hand(list(values), method.elect, method.combine) for values in zip(*vectors, strict=True)]
    return [b + method.scale * c for b, c in zip(base_of(parameters).tolist(), changes, strict=True)]


@pytest.mark.parametrize("grid", [False, True], ids=["normal", "grid"])
@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
@pytest.mark.parametrize("elect", ["mass", "count"])
@pytest.mark.parametrize("trim", ["global", "per_tensor"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.63, 1.0])
def test_every_option_follows_the_algorithm(density: float, trim: str, elect: str, combine: str, grid: bool) -> None:
    method = Ties(density, trim, elect, combine, 0.7)
    for count in (1, 2, 5):
        parameters = random_parameters(count, count, grid)
        assert close(merged(method, parameters), ties_by_hand(method, parameters))


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
def test_pieces_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, trim: str) -> None:
    parameters = random_parameters(3, 3, shapes=((70, 30), (900,)))
    whole = merged(Ties(trim=trim), parameters)
    monkeypatch.setattr(pieces, "_CPU_SPAN", 64)
    monkeypatch.setattr(pieces, "_THREADED", 128)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(merged(Ties(trim=trim), parameters), whole)


@pytest.mark.parametrize("density", [0.1, 0.37])
def test_global_trimming_keeps_exactly_k_entries_of_the_model(density: float) -> None:
    parameters = random_parameters(0, 1)
    total = sum(parameter.base.numel() for parameter in parameters)
    changed = merged(Ties(density), parameters) != base_of(parameters)
    assert int(changed.sum()) == round(density * total)


METHODS = st.builds(
    Ties,
    density=st.sampled_from([0.1, 0.5, 1.0]),
    trim=st.sampled_from(["global", "per_tensor"]),
    elect=st.sampled_from(["mass", "count"]),
    combine=st.sampled_from(["mean", "sum", "max"]),
)


@given(METHODS, grid_parameters())
def test_small_models_of_any_kind_follow_the_algorithm(method: Ties, parameters: list[Parameter]) -> None:
    assert close(merged(method, parameters), ties_by_hand(method, parameters))


@given(METHODS, grid_parameters(), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_changes_nothing(method: Ties, parameters: list[Parameter], random: object) -> None:
    order = list(range(parameters[0].count))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert close(merged(method, reordered(parameters, order)), merged(method, parameters))


@given(METHODS, grid_parameters())
def test_opposite_task_vectors_give_the_opposite_merge(method: Ties, parameters: list[Parameter]) -> None:
    there = merged(method, parameters) - base_of(parameters)
    back = merged(method, with_vectors(parameters, -1.0)) - base_of(parameters)
    assert torch.allclose(there, -back, atol=1e-7)


@given(METHODS, grid_parameters())
def test_task_vectors_of_half_the_size_give_half_the_merge(method: Ties, parameters: list[Parameter]) -> None:
    whole = merged(method, parameters) - base_of(parameters)
    half = merged(method, with_vectors(parameters, 0.5)) - base_of(parameters)
    assert torch.allclose(half, whole / 2, atol=1e-6)


@given(grid_parameters(1, 1), st.integers(1, 4), st.sampled_from(["mass", "count"]))
def test_equal_experts_merge_to_themselves_when_nothing_is_trimmed(
    parameters: list[Parameter], count: int, elect: str
) -> None:
    equal = reordered(parameters, [0] * count)
    assert close(merged(Ties(1.0, elect=elect), equal), merged(Ties(1.0), parameters))
    assert close(merged(Ties(1.0, elect=elect), equal), base_of(parameters) + torch.tensor(vectors_of(parameters)[0]))


@given(METHODS, grid_parameters(1, 3))
def test_experts_that_are_the_base_give_the_base_bit_for_bit(method: Ties, parameters: list[Parameter]) -> None:
    assert torch.equal(merged(method, with_vectors(parameters, 0.0)), base_of(parameters))


@pytest.mark.parametrize("method", [Ties(trim="per_tensor"), Ties(1.0)])
def test_no_pass_is_made_where_no_global_threshold_is_needed(method: Ties) -> None:
    def parameters() -> Iterator[Parameter]:
        pytest.fail("a pass over all parameters")

    assert method.statistics(parameters) is None


def test_votes_that_cancel_elect_nothing() -> None:
    parameter = Parameter("w", torch.tensor([5.0, 5.0]), (torch.tensor([6.0, 6.0]), torch.tensor([4.0, 7.0])))
    assert merged(Ties(1.0), [parameter]).tolist() == [5.0, 6.5]
    assert merged(Ties(1.0, elect="count"), [parameter]).tolist() == [5.0, 6.5]


def test_magnitudes_as_large_as_the_threshold_are_all_kept() -> None:
    expert = torch.tensor([0.5, -0.5, 0.25, 0.5])
    assert merged(Ties(0.25), [Parameter("w", torch.zeros(4), (expert,))]).tolist() == [0.5, -0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"density of ties is a share in \(0, 1\], got 0.0"),
        ({"density": 20}, r"share in \(0, 1\], got 20"),
        ({"density": float("nan")}, "finite number, got nan"),
        ({"trim": "tensor"}, "unknown trim 'tensor' of ties; known: global, per_tensor"),
        ({"elect": "vote"}, "unknown elect 'vote' of ties; known: mass, count"),
        ({"combine": "median"}, "unknown combine 'median' of ties; known: mean, sum, max"),
        ({"scale": float("inf")}, "scale of ties must be a finite number, got inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        Ties(**options)  # type: ignore[arg-type]
