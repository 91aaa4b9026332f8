"""Passes over the parameters of base and experts: read ahead, checked, on several cores, with bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.buffers import is_running_statistic, merge_buffers
from simo_merge.merging.parameter import Parameter, count_blocks, layer_of
from simo_merge.merging.stored import stored_as, stored_in
from simo_merge.progress import progress

R = TypeVar("R")
WORKERS = min(os.cpu_count() or 1, 4)
"""Threads of a pass: each holds one parameter of base and experts."""


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
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Sequence[Mapping[str, Tensor]],
        labels: Sequence[str] | None = None,
        device: torch.device | None = None,
        workers: int = WORKERS,
    ) -> None:
        self.base, self.experts = base, tuple(experts)
        self.labels = tuple(labels or ("the base", *(f"expert {i + 1}" for i in range(len(experts)))))
        self.names = sorted(name for name in base if self._is_merged(name))
        self.device, self.workers = device or torch.device("cpu"), max(workers, 1)
        self._blocks = count_blocks(list(base))
        self._checked: set[str] = set()

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

    def parameter(self, name: str) -> Parameter:
        """One parameter, in float32 on the device, or in float64 where the base is.

        Raises:
            SimoError: NaN or infinity in it.
        """
        base = self.base[name].detach()
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        experts = (state[name].detach() for state in self.experts)
        tensors = [tensor.to(self.device, wide) for tensor in (base, *experts)]
        if name not in self._checked:  # once: later passes read the same values
            for tensor, label in zip(tensors, self.labels, strict=True):
                check_finite(tensor, name, label)
            self._checked.add(name)
        return Parameter(name, tensors[0], tuple(tensors[1:]), layer_of(name, self._blocks), self._blocks + 2)

    def parameters(self) -> Iterator[Parameter]:
        """A pass in order, each parameter read while the one before it is used."""
        with ThreadPoolExecutor(1, initializer=_use_one_core) as reader:
            ahead: Future[Parameter] | None = None
            for name in [*self.names, None]:
                ready, ahead = ahead, None if name is None else reader.submit(self.parameter, name)
                if ready is not None:
                    yield ready.result()

    def map(self, compute: Callable[[Parameter], R], label: str) -> Iterator[tuple[str, R]]:
        """(name, compute(parameter)) in order; a few parameters at a time, each in a thread of its own."""
        return progress(self._map(compute), len(self.names), label)

    def _map(self, compute: Callable[[Parameter], R]) -> Iterator[tuple[str, R]]:
        def work(name: str) -> R:
            with torch.no_grad():  # it holds for a thread
                return compute(self.parameter(name))

        pool = ThreadPoolExecutor(self.workers, initializer=_use_one_core)
        pending: deque[tuple[str, Future[R]]] = deque()
        try:
            for name in self.names:
                if len(pending) == self.workers:
                    done, future = pending.popleft()
                    yield done, future.result()
                pending.append((name, pool.submit(work, name)))
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


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
