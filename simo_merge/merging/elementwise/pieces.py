"""Merges that treat every entry of a parameter alike, computed in pieces that stay in the cache.

A method of this kind is limited by memory, not by arithmetic: with T experts each entry is T + 1 numbers read and one
written. Working through a parameter in pieces that fit in the cache keeps everything in between out of main memory, and
gives each core its own run of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from simo_merge.merging.parameter import Parameter

Result = TypeVar("Result")
Update = Callable[[list[Tensor], slice], Tensor]
"""Task vectors (T times (n,), which it may overwrite) and where they lie in the flattened parameter -> update (n,)."""
Updates = Callable[[list[Tensor], slice], Sequence[Tensor]]
"""The same, giving an update (n,) for every task."""

_CPU_SPAN = 1 << 17  # half a MiB in float32: long enough to be worth its call, short enough for a handful in the cache
_GPU_SPAN = 1 << 24  # there each step is a kernel launch: few and large
_THREADED = 1 << 18  # a smaller parameter is done before threads have started


def map_runs(work: Callable[[Sequence[slice]], Result], size: int, device: torch.device) -> list[Result]:
    """What `work` gives for runs of consecutive spans of range(size), in their order.

    On the CPU there is one run for each of torch's threads.
    """
    step = _CPU_SPAN if device.type == "cpu" else _GPU_SPAN
    spans = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    workers = min(torch.get_num_threads(), len(spans)) if device.type == "cpu" and size >= _THREADED else 1
    if workers == 1:
        return [work(spans)] if spans else []
    run = -(-len(spans) // workers)
    runs = [spans[i : i + run] for i in range(0, len(spans), run)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, runs))


def map_spans(work: Callable[[slice], Result], size: int, device: torch.device) -> list[Result]:
    """What `work` gives for consecutive spans of range(size), in their order."""
    runs = map_runs(lambda spans: [work(span) for span in spans], size, device)
    return [result for results in runs for result in results]


def vectors_of(parameter: Parameter) -> Callable[[slice], list[Tensor]]:
    """The task vectors of a span of the flattened parameter: T tensors (n,) that are nobody else's."""
    base = parameter.base.reshape(-1)
    experts = [expert.reshape(-1) for expert in parameter.experts]
    if base.device.type != "cpu":
        return lambda span: [expert[span] - base[span] for expert in experts]

    def vectors(span: slice) -> list[Tensor]:
        room = [parameter.memory.tensor((span.stop - span.start,), base.dtype) for _ in experts]
        return [torch.sub(expert[span], base[span], out=out) for expert, out in zip(experts, room, strict=True)]

    return vectors


def merge_elementwise(parameter: Parameter, update: Update) -> Tensor:
    """theta_0 + update(tau_1, ..., tau_T), piece by piece, of the shape of theta_0.

    Where the update is zero, theta_0 is kept bit for bit.
    """
    base, vectors = parameter.base.reshape(-1), vectors_of(parameter)
    merged = parameter.empty().view(-1)

    def work(span: slice) -> None:
        torch.add(base[span], update(vectors(span), span), out=merged[span])

    map_spans(work, base.numel(), base.device)
    return merged.view(parameter.base.shape)


def merge_elementwise_for_tasks(parameter: Parameter, updates: Updates) -> Tensor:
    """theta_0 + updates_t(tau_1, ..., tau_T) for every task, piece by piece: (T, ...)."""
    base, vectors = parameter.base.reshape(-1), vectors_of(parameter)
    merged = base.new_empty(parameter.count, base.numel())

    def work(span: slice) -> None:
        for own, update in zip(merged, updates(vectors(span), span), strict=True):
            torch.add(base[span], update, out=own[span])

    map_spans(work, base.numel(), base.device)
    return merged.view(parameter.count, *parameter.base.shape)
