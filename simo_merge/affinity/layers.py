"""What is summed over parameters, gathered by depth and by kind of module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import add
from typing import Protocol, Self, TypeVar

from torch import Tensor

from simo_merge.affinity.matrix import MODULE
from simo_merge.merging.parameter import Parameter, kind_of, layer_label


class Adds(Protocol):
    """What can be added up."""

    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Adds)


def gather(found: Iterable[tuple[Parameter, S]]) -> tuple[S, dict[str, S]]:
    """The sum over all parameters; and for each layer, in order, then for each kind of module, by name, its sum."""
    layers: dict[tuple[int, str], list[S]] = {}
    kinds: dict[str, list[S]] = {}
    for parameter, part in found:
        layers.setdefault((parameter.layer, layer_label(parameter)), []).append(part)
        kinds.setdefault(f"{MODULE}{kind_of(parameter.name)}", []).append(part)
    by_depth = {label: reduce(add, layers[depth, label]) for depth, label in sorted(layers)}
    by_kind = {kind: reduce(add, kinds[kind]) for kind in sorted(kinds)}
    return reduce(add, by_depth.values()), by_depth | by_kind


def each(profile: Mapping[str, S], measure: Callable[[S], Tensor]) -> dict[str, Tensor]:
    """A measure of every layer's sum."""
    return {layer: measure(part) for layer, part in profile.items()}
