"""Batches in the order of a plan, read ahead of their use: by a thread, or by worker processes."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from simo_merge.data.sample import Batch, DenseDataset, Sample, collate
from simo_merge.errors import SimoError

Item = TypeVar("Item")

AHEAD = 2
"""Batches that the thread, and each worker process, reads before they are asked for."""


def load(read: Callable[[Item], Sample], plan: Sequence[Sequence[Item]], workers: int = 0) -> Iterator[Batch]:
    """The batches of a plan, in its order; they are the same for every number of workers.

    Torch's own chance is left alone.

    Args:
        read: Item -> its sample. It is called in one thread at a time, not the caller's; worker processes get a copy
            of it, so it must pickle.
        plan: The items of each batch.
        workers: Processes that read. 0 reads in a thread of this process: pictures are decoded while the model
            computes, for the memory of two batches; processes are needed where one core is too slow for the model.

    Raises:
        SimoError: as `read` raises it or `collate`, in a worker process too.
        RuntimeError: anything else that went wrong in a worker process; the cause has its traceback.
    """
    return _from_thread(read, plan) if workers == 0 else _from_processes(read, plan, workers)


@contextmanager
def naming(dataset: DenseDataset, index: int) -> Iterator[None]:
    """Give an error that says nothing of data sets the name of the sample that it befell.

    Raises:
        SimoError: the one that was raised, which says all; or for the operating system's refusal to read.
        RuntimeError: from any other error, with its message.
    """
    try:
        yield
    except SimoError:
        raise
    except Exception as error:
        kind = SimoError if isinstance(error, OSError) else RuntimeError
        where = f"{dataset.name} ({dataset.split}), sample {dataset.keys[index]!r}"
        raise kind(f"{where}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Reader:
    """Reads the samples of a data set by index, for `load`."""

    dataset: DenseDataset

    def __call__(self, index: int) -> Sample:
        """The sample; errors are those of `naming`."""
        with naming(self.dataset, index):
            return self.dataset[index]


def _from_thread(read: Callable[[Item], Sample], plan: Sequence[Sequence[Item]]) -> Iterator[Batch]:
    ahead: deque[Future[Batch]] = deque()
    thread = _thread(os.getpid())
    try:
        for items in plan:
            ahead.append(thread.submit(_batch, read, items))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # an error, or a caller that has seen enough: what is not begun is not read
        for batch in ahead:
            batch.cancel()


def _from_processes(read: Callable[[Item], Sample], plan: Sequence[Sequence[Item]], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        _Batches(read, plan),
        batch_size=None,  # an item is a batch
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # with batch_size=None it gets an item, not a list
        num_workers=workers,
        prefetch_factor=AHEAD,
        generator=torch.Generator(),  # else the global one is drawn from
    )
    _thread(os.getpid()).submit(int).result()  # when it comes to that, the thread has nothing left to do
    for found in loader:
        if isinstance(found, _Failure):
            raise found.error()
        yield found


@lru_cache(maxsize=1)
def _thread(process: int) -> ThreadPoolExecutor:
    """The one thread of this process that reads.

    It is kept, and idle when worker processes are forked: a fork copies the locks that another thread holds, and
    nobody ever opens the copies. OpenCV takes such a lock when a thread ends that has used it.
    """
    return ThreadPoolExecutor(1, "simo_merge loader")


def _batch(read: Callable[[Item], Sample], items: Sequence[Item]) -> Batch:
    return collate([read(item) for item in items])


def _as_it_is(found: Batch | _Failure) -> Batch | _Failure:
    return found


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process; torch itself would make a traceback part of its message."""

    message: str
    traceback: str | None = None

    def error(self) -> Exception:
        if self.traceback is None:
            return SimoError(self.message)
        error = RuntimeError(self.message)
        error.__cause__ = _WorkerTraceback(self.traceback)
        return error


class _WorkerTraceback(Exception):
    """Where the error arose in a worker process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Batches(Dataset[Batch | _Failure], Generic[Item]):
    """The batches of a plan by their number; errors are values."""

    def __init__(self, read: Callable[[Item], Sample], plan: Sequence[Sequence[Item]]) -> None:
        self.read = read
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch | _Failure:
        try:
            return _batch(self.read, self.plan[index])
        except SimoError as error:
            return _Failure(str(error))
        except Exception as error:
            return _Failure(str(error), traceback.format_exc())
