"""Passes over the parameters of base and experts: read ahead, checked, on several cores, with bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.buffers import is_running_statistic, merge_buffers
from simo_merge.merging.memory import Memory
from simo_merge.merging.parameter import Parameter, Passes, count_blocks, layer_of
from simo_merge.merging.stored import stored_as, stored_in
from simo_merge.progress import progress

R = TypeVar("R")
_Place = tuple[str, slice | None]  # a parameter's name, and which piece of it, if it comes in pieces
PIECE = 1 << 19
"""Entries of a piece: those of base and a few experts fit in the cache (2 MiB each in float32)."""
WORKERS = min(os.cpu_count() or 1, 4)
"""Threads of a pass: each holds one parameter of base and experts."""


@runtime_checkable
class ReadsIntoMemory(Protocol):
    """A state that reads tensors, or spans of them flattened, into memory that was used before."""

    def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
        """One tensor, as it is stored."""
        ...


class Sources:
    """The floating-point tensors of base and experts, parameter by parameter.

    A pass goes by sorted names, so what a method sums or draws does not depend on how the tensors are stored. Threads
    that merge compute on one core each, so the result does not depend on how many there are.

    Args:
        base: the base's tensors, in memory or read as they are asked for.
        experts: the experts', of the same names and shapes.
        labels: what to call base and experts in messages; default: "the base", "expert 1", ...
        device: where methods compute; default: the CPU.
        workers: how many parameters may be in memory at a time.
        streams: whether what is merged is done with before its parameter is, so that memory can be used again.
        by_entry: whether parameters may come in pieces (`MergeMethod.by_entry`); they do on the CPU.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Sequence[Mapping[str, Tensor]],
        labels: Sequence[str] | None = None,
        device: torch.device | None = None,
        workers: int = WORKERS,
        streams: bool = False,
        by_entry: bool = False,
    ) -> None:
        self.base, self.experts = base, tuple(experts)
        self.labels = tuple(labels or ("the base", *(f"expert {i + 1}" for i in range(len(experts)))))
        self.device, self.workers = device or torch.device("cpu"), max(workers, 1)
        self._streams, self._memory = streams, Memory()
        self._blocks = count_blocks(list(base))
        self._checked: set[tuple[str, int]] = set()
        names = sorted(name for name in base if self._is_merged(name))
        in_pieces = by_entry and self.device.type == "cpu" and all(_reads_spans(state) for state in (base, *experts))
        if in_pieces:
            # Pieces take short operations. Threads that hand the interpreter to each other after every one of them lose
            # more by that than a second core brings.
            self.workers = 1
        self._places = [place for name in names for place in (self._pieces(name) if in_pieces else [(name, None)])]

    def _pieces(self, name: str) -> list[_Place]:
        """A parameter's pieces, whose bounds are those of the spans that methods work in."""
        size = math.prod(stored_in(self.base, name).shape)
        if size <= PIECE:
            return [(name, None)]
        return [(name, slice(start, min(start + PIECE, size))) for start in range(0, size, PIECE)]

    def unmerged(self) -> dict[str, Tensor]:
        """What no method sees: running statistics, merged by their own rule, and integers, the base's.

        Raises:
            SimoError: NaN or infinity in a running statistic, or merged ones that the base's type cannot hold.
        """
        kept = {name: self.base[name] for name in self.base if not self._is_merged(name)}
        states = zip((kept, *self.experts), self.labels, strict=True)
        _, *experts = [_running_statistics(state, label) for state, label in states]
        counted = merge_buffers(experts) if experts else {}
        return {
            name: stored_as(counted[name], value.dtype, name) if name in counted else value
            for name, value in kept.items()
        }

    def _is_merged(self, name: str) -> bool:
        return stored_in(self.base, name).is_float and not is_running_statistic(name)

    def parameter(self, place: _Place) -> Parameter:
        """One parameter or piece, in float32 on the device, or in float64 where the base is.

        Raises:
            SimoError: NaN or infinity in it.
        """
        name, span = place
        start = 0 if span is None else span.start
        base, *experts = (self._read(state, name, span) for state in (self.base, *self.experts))
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        tensors = [self._widened(tensor, wide) for tensor in (base, *experts)]
        if (name, start) not in self._checked:  # once: later passes read the same values
            for tensor, label in zip(tensors, self.labels, strict=True):
                check_finite(tensor, name, label)
            self._checked.add((name, start))
        return Parameter(
            name,
            tensors[0],
            tuple(tensors[1:]),
            layer_of(name, self._blocks),
            self._blocks + 2,
            start,
            self._memory,
            self._streams,
        )

    def _read(self, state: Mapping[str, Tensor], name: str, span: slice | None) -> Tensor:
        if isinstance(state, ReadsIntoMemory):
            return state.read(name, self._memory, span)
        tensor = state[name].detach()
        return tensor if span is None else tensor.reshape(-1)[span]

    def _widened(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if self.device.type != "cpu" or tensor.dtype == dtype:
            return tensor.to(self.device, dtype)
        return self._memory.tensor(tensor.shape, dtype).copy_(tensor)

    @property
    def parameters(self) -> Passes:
        """Passes for what a method must know of all parameters together."""
        return Passes(self._in_order, self._map)

    def _in_order(self) -> Iterator[Parameter]:
        """A pass in which each parameter is read while the one before it is used."""
        with ThreadPoolExecutor(1, initializer=_use_one_core) as reader:
            ahead: Future[Parameter] | None = None
            for place in [*self._places, None]:
                ready, ahead = ahead, None if place is None else reader.submit(self.parameter, place)
                if ready is not None:
                    yield ready.result()

    def map(self, compute: Callable[[Parameter], R], label: str) -> Iterator[tuple[str, R]]:
        """(name, compute(parameter)) in order; a few parameters at a time, each in a thread of its own."""
        results = progress(self._map(compute), len(self._places), label)
        return ((name, result) for (name, _), result in zip(self._places, results, strict=True))

    def _map(self, compute: Callable[[Parameter], R]) -> Iterator[R]:
        def work(place: _Place) -> R:
            with torch.no_grad():  # it holds for a thread
                return compute(self.parameter(place))

        pool = ThreadPoolExecutor(self.workers, initializer=_use_one_core)
        pending: deque[Future[R]] = deque()
        try:
            for place in self._places:
                if len(pending) == self.workers:
                    yield pending.popleft().result()
                pending.append(pool.submit(work, place))
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _reads_spans(state: Mapping[str, Tensor]) -> bool:
    """Whether a span costs no more than its share of the tensor."""
    if isinstance(state, dict):
        return all(tensor.is_contiguous() for tensor in state.values())
    return isinstance(state, ReadsIntoMemory)


def _running_statistics(state: Mapping[str, Tensor], whose: str) -> dict[str, Tensor]:
    """Those of one state, in float32 at least, so that what is merged of them does not overflow."""
    found = {name: state[name] for name in state if is_running_statistic(name)}
    for name, tensor in found.items():
        if tensor.is_floating_point():
            check_finite(tensor, name, whose)
            found[name] = tensor if tensor.dtype.itemsize >= 4 else tensor.float()
    return found


def check_finite(tensor: Tensor, name: str, whose: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        SimoError: naming the tensor and whose it is.
    """
    # A sum with NaN or infinity in it is neither finite, and costs half of looking at every value.
    if not math.isfinite(tensor.sum().item()) and not torch.isfinite(tensor).all():
        raise SimoError(
            f"{whose} holds NaN or infinity in {name}; the training that wrote it diverged, or the file is damaged: "
            "train that expert again"
        )


@contextmanager
def kept_threads() -> Iterator[None]:
    """Threads that begin after the block use as many cores as those that began before it.

    The number that a pass sets for its own threads is also what torch gives to threads that begin later.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_one_core() -> None:
    torch.set_num_threads(1)
