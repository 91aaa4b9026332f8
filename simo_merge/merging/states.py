"""Merging state dicts, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod
from simo_merge.merging.parameter import Parameter
from simo_merge.merging.passes import WORKERS, Sources, kept_threads
from simo_merge.merging.stored import stored_as


@dataclass(frozen=True)
class MergedStates:
    """What a merge gives: the shared state dict and, for task-specific methods, one for each expert.

    statistics: what the method had to know of all parameters together, or learned from images.
    """

    shared: dict[str, Tensor]
    by_expert: tuple[dict[str, Tensor], ...] = ()
    statistics: Any = None


@dataclass(frozen=True)
class MergedParameter:
    """One merged parameter, in float32 (or wider), and for task-specific methods one for each expert."""

    shared: Tensor
    by_expert: tuple[Tensor, ...] = ()


def merge_states(
    base: Mapping[str, Tensor],
    experts: Sequence[Mapping[str, Tensor]],
    method: MergeMethod,
    observed: Any = None,
    *,
    labels: Sequence[str] | None = None,
    device: torch.device | None = None,
    workers: int = WORKERS,
) -> MergedStates:
    """Merge state dicts parameter by parameter, in float32, or in float64 where the base is.

    Running statistics of normalisation layers are merged by `merge_buffers`; other integers are the base's.

    Peak memory is the output plus a few tensors for every expert.

    Args:
        base: the base's tensors, in memory or read as they are asked for.
        experts: the experts'.
        method: how they are combined.
        observed: what a `DataMergeMethod` has observed.
        labels: what to call base and experts in messages.
        device: where the method computes; default: the CPU.
        workers: how many parameters may be in memory at a time.

    Raises:
        SimoError: a method that learns from images, without what it has observed; NaN or infinity in a tensor; merged
            values that the base's type cannot hold.
    """
    sources = Sources(base, experts, labels, device, workers)
    with kept_threads(), torch.no_grad():
        statistics = gather_statistics(sources, method, observed)
        unmerged = sources.unmerged()
        shared = {name: unmerged.get(name, origin).detach().clone() for name, origin in base.items()}
        by_expert: tuple[dict[str, Tensor], ...] = ()
        if isinstance(method, TaskSpecificMethod):
            by_expert = tuple(dict(shared) for _ in experts)
        for name, found in merged_parameters(sources, method, statistics):
            stored = shared[name].dtype
            shared[name] = stored_as(found.shared, stored, name)
            for state, own in zip(by_expert, found.by_expert, strict=True):
                state[name] = stored_as(own, stored, name)
    return MergedStates(shared, by_expert, statistics)


def gather_statistics(sources: Sources, method: MergeMethod, observed: Any = None) -> Any:
    """What the method must know before the merge: its statistics, or what it has observed.

    Raises:
        SimoError: a method that learns from images, without what it has observed.
    """
    if not isinstance(method, DataMergeMethod):
        return method.statistics(sources.parameters)
    if observed is None:
        raise SimoError(f"{method.name} learns from images, so state dicts alone are not enough; merge the models")
    return observed


def merged_parameters(sources: Sources, method: MergeMethod, statistics: Any) -> Iterator[tuple[str, MergedParameter]]:
    """A pass that merges: every parameter's name and what became of it."""
    return sources.map(lambda parameter: merge_parameter(parameter, method, statistics), "merging")


def merge_parameter(parameter: Parameter, method: MergeMethod, statistics: Any) -> MergedParameter:
    """One parameter, merged."""
    own: tuple[Tensor, ...] = ()
    if isinstance(method, TaskSpecificMethod):
        own = tuple(method.merge_for_tasks(parameter, statistics))
    shared = method.merge(parameter, statistics)
    if shared.data_ptr() in {tensor.data_ptr() for tensor in (parameter.base, *parameter.experts)}:
        shared = shared.clone()  # what is merged must not change with what it was merged from
    return MergedParameter(shared, own)
