"""Correlation of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def spearman(x: Sequence[float] | Values, y: Sequence[float] | Values) -> float:
    """Pearson's correlation of the ranks, equal values sharing the mean of theirs; NaN where all are equal, or none."""
    if not len(x):
        return math.nan
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def ranks(values: Sequence[float] | Values) -> Values:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    found: Values = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return found
