"""The k-th largest magnitude is exact, whatever the numbers, the pieces and the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import Parameter
from simo_merge.merging.elementwise import pieces, quantiles
from simo_merge.merging.elementwise.pieces import map_spans
from simo_merge.merging.elementwise.quantiles import kept, kth_largest, kth_largest_of
from tests.merging.random_experts import random_parameters


def parameter_of(vectors: Tensor, name: str = "weight") -> Parameter:
    """vectors (T, n), on a base of zeros."""
    return Parameter(name, torch.zeros(vectors.shape[1]), tuple(vectors))


def sorted_magnitudes(vector: Tensor) -> list[float]:
    return sorted(vector.abs().tolist(), reverse=True)


def in_small_pieces(monkeypatch: pytest.MonkeyPatch, threads: int = 1, few: int = 4) -> None:
    monkeypatch.setattr(pieces, "_CPU_SPAN", 16)
    monkeypatch.setattr(pieces, "_THREADED", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(quantiles, "_FEW", few)


NUMBERS = {
    "normal": lambda g: torch.randn(3, 500, generator=g),
    "of all sizes": lambda g: torch.randn(3, 500, generator=g) * 10.0 ** torch.randint(-40, 30, (3, 500), generator=g),
    "equal": lambda g: torch.full((3, 500), -0.25),
    "zero": lambda g: torch.zeros(3, 500),
    "few values": lambda g: torch.randint(-2, 3, (3, 500), generator=g).float(),
    "close together": lambda g: 1 + torch.randint(-9, 10, (3, 500), generator=g) * 2.0**-23,
    "denormal": lambda g: torch.randint(-99, 99, (3, 500), generator=g) * 2.0**-149,
}


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize(("threads", "few"), [(1, 1 << 22), (1, 4), (2, 4), (2, 40)])
def test_every_rank_is_what_sorting_gives(
    monkeypatch: pytest.MonkeyPatch, numbers: Callable[[torch.Generator], Tensor], threads: int, few: int
) -> None:
    in_small_pieces(monkeypatch, threads, few)
    vectors = numbers(torch.Generator().manual_seed(0))
    ranks = [1, 2, 77, 250, 499, 500]
    found = kth_largest_of(parameter_of(vectors), ranks)
    expected = [[sorted_magnitudes(vector)[k - 1] for k in ranks] for vector in vectors]
    assert found.tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.data())
def test_any_rank_of_any_numbers(numbers: list[float], data: st.DataObject) -> None:
    vector = torch.tensor([numbers])
    rank = data.draw(st.integers(1, len(numbers)))
    assert kth_largest_of(parameter_of(vector), [rank]).item() == sorted_magnitudes(vector[0])[rank - 1]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_global_rank_is_that_of_all_parameters_together_in_any_order(order: slice) -> None:
    parameters = random_parameters(1)[order]
    size = sum(parameter.base.numel() for parameter in parameters)
    found = kth_largest(lambda: iter(parameters), lambda total: [total // 4])
    for t in range(3):
        together = torch.cat([(p.experts[t] - p.base).reshape(-1) for p in parameters])
        assert found[t].item() == sorted_magnitudes(together)[size // 4 - 1]


def passes_for(vectors: Tensor) -> int:
    made = 0

    def parameters() -> Iterator[Parameter]:
        nonlocal made
        made += 1
        return iter([parameter_of(vectors)])

    kth_largest(parameters, lambda size: [size // 5])
    return made


def test_two_passes_do_and_equal_numbers_take_no_more_than_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "_FEW", 100)
    assert passes_for(torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))) == 2
    assert passes_for(torch.full((2, 2000), 0.3)) <= 4


def test_no_more_is_collected_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "_FEW", 50)
    sizes = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **kind: sizes.append(size) or empty(size, **kind))
    kth_largest_of(parameter_of(torch.ones(1, 3000)), [1500])
    kth_largest_of(parameter_of(torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))), [1500])
    assert sizes
    assert max(sizes) <= 50


def test_the_spans_of_threads_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2, 3, 7):
        in_small_pieces(monkeypatch, threads)
        spans = map_spans(lambda span: span, 150, torch.device("cpu"))
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(150))


def test_wider_numbers_are_ranked_by_their_float32_magnitudes() -> None:
    vectors = torch.randn(1, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = Parameter("weight", torch.zeros(100, dtype=torch.float64), tuple(vectors))
    assert kth_largest_of(parameter, [10]).item() == sorted_magnitudes(vectors[0].float())[9]


def test_an_empty_parameter_has_no_magnitudes_and_no_parameters_are_refused() -> None:
    assert kth_largest_of(parameter_of(torch.zeros(2, 0)), [1, 1]).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(SimoError, match="no floating-point parameters"):
        kth_largest(lambda: iter([]), lambda _: [1])


def test_a_share_keeps_the_nearest_number_of_entries_and_at_least_one() -> None:
    assert [kept(0.2, n) for n in (1, 2, 10, 13, 1000)] == [1, 1, 2, 3, 200]
    assert kept(0.29, 100) == 29  # 0.29 * 100 is below 29 in floating point
