"""A step's batch in parts: over processes, and over micro-batches that follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.data import Batch
from simo_merge.distributed import add_up, rank, world_size
from simo_merge.errors import SimoError


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of a step's batch.

    batch: the rows. first: the number of the first of them in the whole batch.
    share: what its losses count for in those of the whole batch, (T,) float64; None where it is the whole batch.
    images: its share of the images.
    """

    batch: Batch
    first: int
    share: Tensor | None = None
    images: float = 1.0


@dataclass(frozen=True)
class Cut:
    """How batches are cut: micro-batch m has rows m·B/A to (m+1)·B/A, and process r the r-th part of each.

    So a micro-batch is the same images however many processes share it.

    batch_size: B, images of a step over all processes. accumulate: A, micro-batches.

    Raises:
        SimoError: B does not divide by A times the number of processes.
    """

    batch_size: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        pieces = self.accumulate * world_size()
        if self.batch_size % pieces:
            raise SimoError(
                f"batch_size is {self.batch_size}, images of a step over all processes; it must divide by "
                f"{self.accumulate} micro-batch(es) x {world_size()} process(es) = {pieces}: take "
                f"{-(-self.batch_size // pieces) * pieces}, or fewer processes"
            )

    @property
    def whole(self) -> bool:
        """Whether the only part is the batch itself."""
        return self.accumulate == 1 and world_size() == 1

    @property
    def rows(self) -> list[int]:
        """The rows of this process, micro-batch by micro-batch."""
        return [first + row for first in self._firsts for row in range(self._size)]

    @property
    def _size(self) -> int:
        return self.batch_size // (self.accumulate * world_size())

    @property
    def _firsts(self) -> list[int]:
        return [(m * world_size() + rank()) * self._size for m in range(self.accumulate)]

    def parts(self, batch: Batch, tasks: Iterable[str]) -> list[Part]:
        """The parts of this process, from its `rows` of a batch.

        A task's loss is the mean over valid pixels of the whole batch, so a part counts for the pixels it has:
        L_t = Σ_p n_pt L_pt / Σ_p n_pt, exactly, however its labels are spread.
        """
        if self.whole:
            return [Part(batch, 0)]
        pieces = [_rows(batch, i * self._size, (i + 1) * self._size) for i in range(self.accumulate)]
        shares = _shares(pieces, list(tasks))
        images = self._size / self.batch_size
        return [Part(*found, images) for found in zip(pieces, self._firsts, shares, strict=True)]


def _shares(pieces: Sequence[Batch], tasks: Sequence[str]) -> Tensor:
    """Valid pixels of each piece over those of all pieces of all processes, (A, T); 0 where there are none."""
    counts = torch.stack([torch.stack([piece.masks[task].sum() for task in tasks]) for piece in pieces])
    counts = counts.to("cpu", torch.float64)
    total = counts.sum(dim=0)
    add_up([total])
    return counts / total.clamp(min=1)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    return Batch(
        images=batch.images[rows],
        targets={name: target[rows] for name, target in batch.targets.items()},
        masks={name: mask[rows] for name, mask in batch.masks.items()},
        keys=batch.keys[rows],
    )
