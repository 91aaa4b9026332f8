"""A small random model of several parameters and its experts, for merge methods; and how a method merges it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.merging import MergeMethod, Parameter

SHAPES = ((4, 6), (5,), (), (1,), (3, 2, 2), (7, 9))
LAYERS = (0, 1, 1, 2, 2, 3)  # two blocks, what comes before and what comes after


def random_parameters(
    seed: int, count: int = 3, grid: bool = False, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> list[Parameter]:
    """Normal numbers; or, on a grid, multiples of 1/1024: many zeros, equal magnitudes, sums without rounding."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(shape: tuple[int, ...], size: float) -> Tensor:
        if grid:
            return torch.randint(-6, 7, shape, generator=generator) / 1024
        return size * torch.randn(shape, generator=generator)

    made = []
    for i, shape in enumerate(shapes):
        base = numbers(shape, 1.0)
        experts = tuple(base + numbers(shape, 0.1 * (1 + t)) for t in range(count))
        made.append(Parameter(f"blocks.{i}.weight", base, experts, LAYERS[i % len(LAYERS)], 4))
    return made


def merge_all(method: MergeMethod, parameters: Sequence[Parameter]) -> list[Tensor]:
    statistics = method.statistics(lambda: iter(parameters))
    return [method.merge(parameter, statistics) for parameter in parameters]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in tensors])


def merged(method: MergeMethod, parameters: Sequence[Parameter]) -> Tensor:
    """All merged entries in one float64 vector; shapes and types must be the base's."""
    results = merge_all(method, parameters)
    for parameter, result in zip(parameters, results, strict=True):
        assert result.shape == parameter.base.shape
        assert result.dtype == parameter.base.dtype
    return flat(results)


def base_of(parameters: Sequence[Parameter]) -> Tensor:
    return flat([parameter.base for parameter in parameters])


def vectors_of(parameters: Sequence[Parameter]) -> list[list[float]]:
    """The task vectors of all parameters together: T lists of numbers."""
    rows: list[list[float]] = [[] for _ in parameters[0].experts]
    for parameter in parameters:
        for row, expert in zip(rows, parameter.experts, strict=True):
            row.extend((expert - parameter.base).reshape(-1).double().tolist())
    return rows


def close(found: Tensor, expected: Tensor | Sequence[float]) -> bool:
    return torch.allclose(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@st.composite
def grid_parameters(draw: st.DrawFn, least: int = 1, most: int = 4) -> list[Parameter]:
    """One or two small parameters whose sums are exact in float32."""
    count = draw(st.integers(least, most))
    made = []
    for i in range(draw(st.integers(1, 2))):
        size = draw(st.integers(1, 6))
        numbers = draw(st.lists(st.integers(-5, 5), min_size=(count + 1) * size, max_size=(count + 1) * size))
        rows = (torch.tensor(numbers) / 64).view(count + 1, size)
        made.append(Parameter(f"blocks.{i}.weight", rows[0], tuple(rows[0] + row for row in rows[1:]), 1 + i, 4))
    return made


def reordered(parameters: Sequence[Parameter], order: Sequence[int]) -> list[Parameter]:
    return [Parameter(p.name, p.base, tuple(p.experts[i] for i in order), p.layer, p.layers) for p in parameters]


def with_vectors(parameters: Sequence[Parameter], change: float) -> list[Parameter]:
    """Every task vector times `change`."""
    return [
        Parameter(p.name, p.base, tuple(p.base + change * (e - p.base) for e in p.experts), p.layer, p.layers)
        for p in parameters
    ]
