"""Distribution of depths, disparities and other numbers, in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.checking.statistics.coverage import TaskStatistics
from simo_merge.tasks import Task

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_OCTAVES = 24  # from 2^-24 (6e-8) to 2^24 (17 million), both signs
_PER_OCTAVE = 32
_HALF = 2 * _OCTAVES * _PER_OCTAVE
_POSITIVE = 2.0 ** (np.arange(_HALF + 1) / _PER_OCTAVE - _OCTAVES)
DISTINCT_AT_MOST = 1024
"""More different values than this are not counted on."""


class ValueHistogram:
    """Counts of values in bins whose width is 2.2 % of the value, so that no range need be known beforehand.

    `edges` has 2 N + 2 ascending numbers: N bins below 0, one around 0, N bins above.
    """

    edges: Floats = np.concatenate([-_POSITIVE[::-1], _POSITIVE])

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(len(self.edges) - 1, dtype=np.int64)

    def add(self, values: Floats) -> None:
        """Count finite values; those beyond the outermost edge go to the last bin."""
        size = np.maximum(np.abs(values), _POSITIVE[0])
        step = np.clip(np.floor((np.log2(size) + _OCTAVES) * _PER_OCTAVE), 0, _HALF - 1).astype(np.int64)
        bins = np.where(values < 0, _HALF - 1 - step, _HALF + 1 + step)
        bins[np.abs(values) < _POSITIVE[0]] = _HALF
        self.counts += np.bincount(bins, minlength=len(self.counts))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The value below which this share lies, within 2 %; NaN where nothing was counted."""
        if self.total == 0:
            return math.nan
        reached = np.cumsum(self.counts)
        wanted = share * self.total
        index = int(np.searchsorted(reached, wanted, side="left"))
        index = min(max(index, int(np.flatnonzero(self.counts)[0])), len(self.counts) - 1)
        if index == _HALF:
            return 0.0
        before = reached[index] - self.counts[index]
        inside = (wanted - before) / max(int(self.counts[index]), 1)
        low, high = self.edges[index], self.edges[index + 1]
        return float(low + min(max(inside, 0.0), 1.0) * (high - low))

    def linear(self, low: float, high: float, bins: int) -> Floats:
        """Counts in `bins` equal bins from `low` to `high`; what is outside is left out.

        A logarithmic bin is shared out evenly over the linear ones that it meets.
        """
        reached = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.float64)
        at = np.interp(np.linspace(low, high, bins + 1), self.edges, reached)
        return np.diff(at)


class ValueStatistics(TaskStatistics):
    """Extremes, histogram and number of different values of a map of numbers.

    Attributes:
        lowest, highest: Of all valid values.
        at_highest: Valid values that are exactly `highest`.
        zeros: Valid values that are exactly 0.
        distinct: The different values, or None where there are more than `DISTINCT_AT_MOST`.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.histogram = ValueHistogram()
        self.lowest = math.inf
        self.highest = -math.inf
        self.at_highest = 0
        self.zeros = 0
        self.distinct: Floats | None = np.zeros(0)

    @property
    def median(self) -> float:
        """Median of the valid values, within 2 %."""
        return self.histogram.quantile(0.5)

    def _count(self, target: Tensor, mask: Tensor) -> None:
        values = target[:, mask].double().numpy().ravel()
        highest = float(values.max())
        if highest > self.highest:
            self.highest, self.at_highest = highest, 0
        self.at_highest += int((values == self.highest).sum())
        self.lowest = min(self.lowest, float(values.min()))
        self.zeros += int((values == 0).sum())
        self.histogram.add(values)
        if self.distinct is not None:
            together = np.union1d(self.distinct, values)
            self.distinct = together if len(together) <= DISTINCT_AT_MOST else None

    def _numbers(self) -> dict[str, Any]:
        unit = self.task.unit
        if not self.valid:
            return {"unit": unit}
        low, high = self.histogram.quantile(0.001), self.histogram.quantile(0.999)
        counts = self.histogram.linear(low, high, 64)
        return {
            "unit": unit,
            "lowest": self.lowest,
            "median": self.median,
            "highest": self.highest,
            "zeros": self.zeros,
            "distinct_values": None if self.distinct is None else len(self.distinct),
            "histogram": {"from": low, "to": high, "counts": [round(float(count)) for count in counts]},
        }
