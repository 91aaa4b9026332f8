"""Several processes at one task: who they are, sums over them, and what one tells the others.

A launcher (torchrun, `accelerate launch`) starts N processes with RANK and WORLD_SIZE in their environment. The process
group is made when the first sum or message needs it. A process that is alone pays nothing: every function here then
returns what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from simo_merge.errors import SimoError

T = TypeVar("T")
_BUCKET = 2**23  # elements that are sent at once: few messages, and little memory beside the tensors
_PATIENCE = timedelta(hours=2)  # the others wait while one process writes, or compiles


def world_size() -> int:
    """How many processes share the work; 1 unless a launcher started more.

    Raises:
        SimoError: WORLD_SIZE is above 1 without a RANK, or no number.
    """
    if _has_group():
        return dist.get_world_size()
    count = _number("WORLD_SIZE", 1)
    if count > 1 and "RANK" not in os.environ:
        raise SimoError(
            f"WORLD_SIZE is {count}, but RANK is not set; start with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    return count


def rank() -> int:
    """This process's number, from 0."""
    if _has_group():
        return dist.get_rank()
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files, logs and progress."""
    return rank() == 0


def share(count: int) -> range:
    """Which of `count` things are this process's: consecutive ones, in order of rank, in shares that differ by one."""
    processes, mine = world_size(), rank()
    return range(-(-count * mine // processes), -(-count * (mine + 1) // processes))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, which then hold the same bits.

    Every process must give tensors of the same shapes and types, in the same order.
    """
    if world_size() == 1:
        return
    wire = _wire()
    with torch.no_grad():
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(wire)
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def once(tensor: Tensor) -> Tensor:
    """A tensor that every process knows, as the summand that lets `add_up` give it back: 0 but on the main process."""
    return tensor if is_main() else torch.zeros_like(tensor)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, with its gradient: what each process makes of the sum reaches all summands."""
    if world_size() == 1:
        return values
    found: Tensor = _Summed.apply(values)  # type: ignore[no-untyped-call]
    return found


def total_of_parts(part: Tensor) -> Tensor:
    """The sum over all processes as a value, with the gradient of this process's part alone.

    Gradients of it are to be added up afterwards; then each part has counted once.
    """
    if world_size() == 1:
        return part
    found: Tensor = _TotalOfParts.apply(part)  # type: ignore[no-untyped-call]
    return found


def gather(value: T) -> list[T]:
    """What every process gives, in order of rank; values must pickle."""
    if world_size() == 1:
        return [value]
    _group()
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def together(work: Callable[[], T]) -> list[T]:
    """What the work of every process gives, in order of rank; a `SimoError` of one is raised by all.

    The work itself must not speak to other processes: one that has failed would not answer.
    """
    if world_size() == 1:
        return [work()]
    mine: T | SimoError
    try:
        mine = work()
    except SimoError as error:
        mine = error
    found = gather(mine)
    for each in found:
        if isinstance(each, SimoError):
            raise each
    return found  # type: ignore[return-value]  # no errors are left among them


def by_main(work: Callable[[], T]) -> T:
    """Work of the main process alone, begun when all have come here; its result, or its error, on all of them."""
    if world_size() == 1:
        return work()
    _group()
    dist.barrier()
    box: list[Any] = [None]
    if is_main():
        try:
            box = [work()]
        except (SimoError, OSError) as error:
            box = [error]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    found: T = box[0]
    return found


def refuse_differences(what: str, value: object) -> None:
    """Check that every process has the same value.

    Raises:
        SimoError: it names the processes that differ from the first.
    """
    found = gather(value)
    others = [str(number) for number, each in enumerate(found) if each != found[0]]
    if others:
        raise SimoError(
            f"{what} of process {', '.join(others)} is not that of process 0; start all of them with the same command, "
            "data, weights and versions"
        )


def end() -> None:
    """Leave the process group, if this process is in one."""
    if _has_group():
        dist.destroy_process_group()


class _Summed(torch.autograd.Function):
    """d/dx of what all processes make of Σ x is the sum of what each of them sends back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = values.clone()
        add_up([found])
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found = gradient.clone()
        add_up([found])
        return found


class _TotalOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        found = part.clone()
        add_up([found])
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise SimoError(f"the environment variable {name} is {text!r}, expected a number; torchrun sets it")
    return int(text)


def _group() -> None:
    """Make the process group: NCCL where every process of this machine has a GPU of its own, else gloo.

    Raises:
        SimoError: Accelerate is missing.
    """
    if _has_group():
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise SimoError(
            f'{world_size()} processes need accelerate; install it with pip install "simo_merge[distributed]"'
        ) from error
    processes = _number("LOCAL_WORLD_SIZE", world_size())
    PartialState(cpu=torch.cuda.device_count() < processes, timeout=_PATIENCE)


def _wire() -> torch.device:
    """Where tensors must lie to be sent."""
    _group()
    nccl = "nccl" in str(dist.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and place, of a bounded number of elements together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
