"""What the rows say together: comparable groups, means over seeds, the best label-free method, headlines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simo_merge.metrics import protocol_of_label
from simo_merge.report.methods import EXPERTS, REFERENCES, describe
from simo_merge.report.numbers import MINUS, MISSING, percent
from simo_merge.results import ResultRow
from simo_merge.tasks import Task


@dataclass(frozen=True)
class Group:
    """Rows of one data set, split and protocol: these may be compared with one another.

    Args:
        data, split, protocol: what the rows share.
        rows: the rows, in the order in which they came.
        best: the label-free method of the highest mean delta, among those with one encoder pass if any.
    """

    data: str
    split: str
    protocol: str
    rows: tuple[ResultRow, ...]
    best: str | None

    @property
    def methods(self) -> list[str]:
        """Methods in the order in which they first occur."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def of(self, method: str) -> list[ResultRow]:
        """Rows of one method, one for each seed."""
        return [row for row in self.rows if row.method == method]

    def delta(self, method: str) -> float:
        """Mean over seeds of `delta_ratio`, NaN without a row."""
        return mean([row.delta_ratio for row in self.of(method)])

    def primary(self, task: Task) -> str:
        """The task's primary metric under the protocol of these rows."""
        return task.primary_under(protocol_of_label(self.protocol).name)

    def score(self, method: str, task: str, metric: str) -> float:
        """Mean over seeds of a metric, NaN where it was not measured."""
        return mean([row.per_task.get(task, {}).get(metric, math.nan) for row in self.of(method)])


@dataclass(frozen=True)
class Headline:
    """One big number at the top of the page."""

    value: str
    label: str
    detail: str


def group_rows(rows: Sequence[ResultRow]) -> list[Group]:
    """Return the rows by (data, split, protocol), in the order in which these first occur."""
    keys = list(dict.fromkeys((row.data, row.split, row.protocol) for row in rows))
    groups = []
    for data, split, protocol in keys:
        members = tuple(row for row in rows if (row.data, row.split, row.protocol) == (data, split, protocol))
        groups.append(Group(data, split, protocol, members, _best_label_free(members)))
    return groups


def headlines(group: Group, forward_seconds: tuple[float, float] | None) -> list[Headline]:
    """Return the big numbers of the page: loss won back, encoder passes, forward time, labels."""
    if group.best is None:
        return []
    best = group.of(group.best)[0]
    experts = group.of(EXPERTS)
    before = group.best.partition("+")[0]
    result = []
    if before != group.best and group.delta(before) < 0:
        start, end = group.delta(before), group.delta(group.best)
        share = f"{100 * (end - start) / -start:.0f} %".replace("-", MINUS)
        detail = f"Δ from {percent(start)} after merging to {percent(end)} after re-aligning; the experts are 0."
        result.append(Headline(share if math.isfinite(end) else MISSING, "of the loss won back", detail))
    if experts:
        passes = f"{experts[0].encoder_passes:.3g} → {best.encoder_passes:.3g}"
        result.append(
            Headline(
                passes,
                "encoder passes per image",
                "The experts have an encoder each; the merged model shares its own.",
            )
        )
    if forward_seconds is not None and forward_seconds[0] > 0:
        apart, merged = forward_seconds
        detail = f"{1000 * merged:.0f} ms instead of {1000 * apart:.0f} ms for all tasks of one image."
        result.append(Headline(f"{merged / apart:.2f} ×", "the experts' forward time", detail))
    detail = f"{describe(group.best).name}: fitted on {best.images} unlabelled images."
    result.append(Headline(str(best.labels), "labels used after the experts", detail))
    return result


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def _best_label_free(rows: Sequence[ResultRow]) -> str | None:
    candidates = [
        row for row in rows if row.labels == 0 and row.method not in REFERENCES and math.isfinite(row.delta_ratio)
    ]
    one_pass = [row for row in candidates if row.encoder_passes == 1]
    pool = one_pass or candidates
    methods = dict.fromkeys(row.method for row in pool)
    return max(methods, key=lambda name: mean([row.delta_ratio for row in pool if row.method == name]), default=None)
