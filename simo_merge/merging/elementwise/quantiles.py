"""The k-th largest magnitude of task vectors, exactly, without sorting or holding them.

Non-negative float32 numbers are ordered as their bits are, read as integers. So the bits are found from the highest
down: one pass counts the entries by their leading bits, which tells where the k-th largest lies and how many there are
like it. As soon as these are few, the next pass collects and sorts them. Two passes do for the task vectors of
real experts; if ever so many entries are equal or all but equal, at most four, and memory stays bounded all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.elementwise.pieces import map_runs, map_spans, vectors_of
from simo_merge.merging.parameter import Parameter, Parameters, map_parameters

_BITS = 31  # of a float32 without its sign
_DIGIT = 13  # bits that one pass finds: exponent and 5 of the mantissa; the counts fit in the cache beside a span
_FEW = 1 << 22  # so many entries (16 MiB) are collected; more are counted by their next bits


def kept(density: float, size: int) -> int:
    """How many of `size` entries a share is: rounded to the nearest, and at least one."""
    return max(1, round(density * size))


def kth_largest(parameters: Parameters, ranks: Callable[[int], Sequence[int]]) -> Tensor:
    """For every expert, the magnitudes of rank k among all entries of its task vector.

    Args:
        parameters: Makes a pass over the parameters that count.
        ranks: Number of entries n -> the wanted ranks k; 1 is the largest, n the smallest.

    Returns:
        (T, number of ranks), float32, on the CPU.

    Raises:
        SimoError: no parameters.
    """
    totals, size = _count_all(parameters)
    searches = [[_Search(rank) for rank in ranks(size)] for _ in totals]
    for expert, counts in zip(searches, totals, strict=True):
        for search in expert:
            search.descend(counts)
    while any(not search.done for expert in searches for search in expert):
        _pass(parameters, searches)
    return torch.tensor([[search.low for search in expert] for expert in searches], dtype=torch.int32).view(
        torch.float32
    )


def kth_largest_of(parameter: Parameter, ranks: Sequence[int]) -> Tensor:
    """The same within one parameter: (T, number of ranks)."""
    if parameter.base.numel() == 0:
        return torch.zeros(parameter.count, len(ranks))
    return kth_largest(lambda: iter([parameter]), lambda _: ranks)


@dataclass
class _Search:
    """Where one rank is: among the entries whose bits, read as an integer, lie in [low, low + 2^open)."""

    rank: int  # among these entries
    low: int = 0
    open: int = _BITS  # bits not yet known
    size: int = 0  # how many such entries there are
    seen: int = 0  # of them, in the pass under way
    found: Tensor | None = None  # room for them, once they are few
    counts: Tensor | None = None

    @property
    def done(self) -> bool:
        return self.open == 0

    @property
    def shift(self) -> int:
        """The bits below those that are counted next."""
        return max(self.open - _DIGIT, 0)

    def look(self, bits: Tensor) -> Tensor:
        """What a span with these bits adds: the entries in question, or their counts by their next bits."""
        inside = _between(bits, self.low, 1 << self.open)
        if self.found is not None:
            return inside
        return _histogram(inside - self.low, self.shift, 1 << (self.open - self.shift))

    def take(self, seen: Tensor) -> None:
        if self.found is not None:
            self.found[self.seen : self.seen + len(seen)] = seen
            self.seen += len(seen)
        else:
            self.counts = seen if self.counts is None else self.counts + seen

    def conclude(self) -> None:
        """After a pass: pick among what was collected, or go down by what was counted."""
        if self.counts is not None:
            counts, self.counts = self.counts, None
            self.descend(counts)
        else:
            assert self.found is not None
            index = self.size - self.rank
            self.low, self.open, self.found = int(np.partition(self.found.numpy(), index)[index]), 0, None

    def descend(self, counts: Tensor) -> None:
        """Go to the bin of the rank; counts: of the entries by their next bits."""
        above = counts.cpu().flip(0).cumsum(0)  # entries in this bin or a higher one
        steps = int(torch.searchsorted(above, self.rank))
        if steps:
            self.rank -= int(above[steps - 1])
        self.size = int(above[steps] - (above[steps - 1] if steps else 0))
        self.low += (len(counts) - 1 - steps) << self.shift
        self.open = self.shift
        if self.open and self.size <= _FEW:
            # One piece of memory for all: many small ones among the short-lived spans would tear the heap to shreds.
            self.found, self.seen = torch.empty(self.size, dtype=torch.int32), 0


def _count_all(parameters: Parameters) -> tuple[list[Tensor], int]:
    """The first pass: for every expert the counts of its entries by their leading bits; and their number."""
    shift, size = _BITS - _DIGIT, 0
    totals: list[Tensor] = []

    def count(parameter: Parameter) -> tuple[list[Tensor], int]:
        vectors = vectors_of(parameter)

        def count_run(spans: Sequence[slice]) -> list[Tensor]:
            counted: list[Tensor] = []
            for span in spans:
                _add(counted, [_histogram(_bits(vector), shift, 1 << _DIGIT) for vector in vectors(span)])
            return counted

        counted: list[Tensor] = []
        for counts in map_runs(count_run, parameter.base.numel(), parameter.base.device):
            _add(counted, counts)
        return counted, parameter.base.numel()

    for counts, entries in map_parameters(parameters, count):
        size += entries
        if counts:
            _add(totals, counts)
    if size == 0:
        raise SimoError("there are no floating-point parameters to merge; give state dicts that hold weights")
    return totals, size


def _add(totals: list[Tensor], counts: list[Tensor]) -> None:
    if not totals:
        totals.extend(counts)
        return
    for total, own in zip(totals, counts, strict=True):
        total += own


def _pass(parameters: Parameters, searches: Sequence[Sequence[_Search]]) -> None:
    def look(parameter: Parameter) -> list[list[list[Tensor]]]:
        vectors = vectors_of(parameter)

        def look_at(span: slice) -> list[list[Tensor]]:
            seen = []
            for vector, expert in zip(vectors(span), searches, strict=True):
                bits = _bits(vector)
                seen.append([search.look(bits) for search in expert if not search.done])
            return seen

        return map_spans(look_at, parameter.base.numel(), parameter.base.device)

    for spans in map_parameters(parameters, look):
        for span in spans:
            for expert, seen in zip(searches, span, strict=True):
                for search, some in zip([s for s in expert if not s.done], seen, strict=True):
                    search.take(some)
    for expert in searches:
        for search in expert:
            if not search.done:
                search.conclude()


def _bits(vector: Tensor) -> Tensor:
    """The magnitudes, which overwrite the vector, as integers of the same order: float32 (n,) -> int32 (n,)."""
    return vector.float().abs_().view(torch.int32)


def _histogram(bits: Tensor, shift: int, bins: int) -> Tensor:
    return torch.bincount(torch.bitwise_right_shift(bits, shift), minlength=bins)


def _between(bits: Tensor, low: int, width: int) -> Tensor:
    """Those in [low, low + width)."""
    if bits.device.type != "cpu":
        return bits[(bits >= low) & (bits < low + width)]
    unsigned = bits.numpy().view(np.uint32)  # what lies below wraps around, so that one comparison sees both ends
    return torch.from_numpy(bits.numpy()[(unsigned - np.uint32(low)) < np.uint32(width)])
