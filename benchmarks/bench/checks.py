"""What re-alignment must reach, looked up in the rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.tables import mean_spread
from simo_merge.metrics.delta import gain_ratio
from simo_merge.results import ResultRow

HIGHER_IS_BETTER = frozenset({"miou"})
LEAST_DELTA = -2.0  # percent, ratio form
LEAST_GAIN = -5.0  # of each task


@dataclass(frozen=True)
class Check:
    """A demand, what was measured, and whether that meets it."""

    demand: str
    measured: str
    met: bool


def gains(row: ResultRow, experts: ResultRow) -> dict[str, float]:
    """Each task's term of delta in ratio form, percent: of its first metric, which is the protocol's own."""
    found = {}
    for task in row.tasks:
        metric = next(iter(experts.per_task[task]))
        ours, theirs = row.per_task[task][metric], experts.per_task[task][metric]
        found[task] = gain_ratio(ours, theirs, metric in HIGHER_IS_BETTER)
    return found


@dataclass(frozen=True)
class Fit:
    """A re-aligned merge and the number of calibration images that it was fitted to."""

    method: str
    images: int

    @property
    def merge(self) -> str:
        return self.method.partition("+")[0]

    def __str__(self) -> str:
        return f"{self.method}, {self.images} images"


def used(row: ResultRow) -> int:
    """How many images a row's fit saw: 0 for the bare merge."""
    return int(row.options.get("fitted_to", 0))


def read_labels(rows: Sequence[ResultRow]) -> bool:
    """Whether any of them read a label, for its fit or for the choice of its merge."""
    return any(row.labels for row in rows)


def best_label_free(rows: Sequence[ResultRow]) -> Fit | None:
    """The fit without labels and with one encoder pass that has the best mean delta on the validation split.

    rows: re-aligned merges of one set of tasks; fits that not every seed has are passed over.
    """
    found: dict[Fit, list[float]] = {}
    for row in rows:
        free = row.labels == 0 and row.encoder_passes == 1 and "+" in row.method
        if free and "validation_delta" in row.options:
            found.setdefault(Fit(row.method, used(row)), []).append(row.options["validation_delta"])
    seeds = max((len(values) for values in found.values()), default=0)
    means = {fit: statistics.fmean(values) for fit, values in found.items() if len(values) == seeds}
    return max(means, key=lambda fit: means[fit]) if means else None


def checks(rows: Sequence[ResultRow], best: Fit, joint: str) -> list[Check]:
    """The demands on the best fit, over the seeds that were measured.

    Args:
        rows: of one set of tasks.
        best: the fit.
        joint: the row of joint training that it is compared with.
    """
    aligned = {row.seed: row for row in rows if Fit(row.method, used(row)) == best}
    experts, merged = ({r.seed: r for r in rows if r.method == name} for name in ("experts", best.merge))
    ours = [row.delta_ratio for row in aligned.values()]
    theirs = [row.delta_ratio for row in rows if row.method == joint]
    mean = statistics.fmean(ours)
    found = [
        Check(
            f"delta at or above {joint}'s",
            f"{mean_spread(ours)} against {mean_spread(theirs)}",
            bool(theirs) and mean >= statistics.fmean(theirs),
        ),
        Check(f"delta at or above {LEAST_DELTA:g} %", mean_spread(ours), mean >= LEAST_DELTA),
    ]
    tasks = next(iter(aligned.values())).tasks
    after, before = _gains(aligned, experts), _gains(merged, experts)
    for task in tasks:
        values = [gain[task] for gain in after.values()]
        met = statistics.fmean(values) >= LEAST_GAIN
        found.append(Check(f"{task} no worse than {LEAST_GAIN:g} %", mean_spread(values), met))
    margins = {
        (task, seed): after[seed][task] - before[seed][task] for seed in after if seed in before for task in tasks
    }
    task, seed = min(margins, key=lambda cell: margins[cell])
    least = margins[task, seed]
    measured = f"{mean_spread([least])} points at the least ({task}, seed {seed})"
    found.append(Check("no task below the merge without re-alignment", measured, least >= 0))
    return found


def _gains(rows: Mapping[int, ResultRow], experts: Mapping[int, ResultRow]) -> dict[int, dict[str, float]]:
    return {seed: gains(row, experts[seed]) for seed, row in rows.items()}
