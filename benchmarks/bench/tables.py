"""Tables: mean and spread over seeds, as text for terminals and as markdown for documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

MISSING = "–"


def mean_spread(values: Iterable[float], digits: int = 1, sign: bool = True, minus: str = "−") -> str:
    """`−1.7 ± 0.2`: mean and standard deviation over seeds, the mean alone of one; empty for none, – for NaN.

    A real minus sign does not break from its number; terminals that lack it take `minus="-"`.
    """
    given = list(values)
    if not given:
        return ""
    if not all(math.isfinite(value) for value in given):
        return MISSING
    mean = statistics.fmean(given)
    text = f"{mean:{'+' if sign else ''}z.{digits}f}".replace("-", minus)
    return text + (f" ± {statistics.stdev(given):.{digits}f}" if len(given) > 1 else "")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def text_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns that line up."""
    body = [head, *lines]
    widths = [max(len(cells[i]) for cells in body) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in body)
