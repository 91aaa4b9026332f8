"""What re-alignment must reach, looked up in the rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.tables import mean_spread
from simo_merge.errors import SimoError
from simo_merge.metrics.delta import gain_ratio
from simo_merge.results import ResultRow

HIGHER_IS_BETTER = frozenset({"miou"})
CONTROLS = ("base+", "+fine-tuning")  # in the names of rows that are no re-alignment of a merge
LEAST_DELTA = -2.0  # percent, ratio form
LEAST_GAIN = -5.0  # of each task


@dataclass(frozen=True)
class Check:
    """A demand, what was measured, and whether that meets it; None where it is told for information."""

    demand: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "" if self.met is None else "met" if self.met else "not met"


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

    def rows(self, rows: Sequence[ResultRow]) -> list[ResultRow]:
        """Those of this fit, one a seed."""
        return [row for row in rows if (row.method, used(row)) == (self.method, self.images)]

    def __str__(self) -> str:
        return f"{self.method}, {self.images} images"


def used(row: ResultRow) -> int:
    """How many images a row's fit saw: 0 for the bare merge."""
    return int(row.options.get("fitted_to", 0))


def read_labels(rows: Sequence[ResultRow]) -> bool:
    """Whether any of them read a label, for its fit or for the choice of its merge."""
    return any(row.labels for row in rows)


def label_free(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The merges that were re-aligned without labels and keep one encoder pass."""
    return [
        row
        for row in rows
        if "+" in row.method
        and row.labels == 0
        and row.encoder_passes == 1
        and not any(part in row.method for part in CONTROLS)
    ]


def best_label_free(rows: Sequence[ResultRow]) -> Fit | None:
    """The fit of `label_free` that has the best mean delta on the validation split.

    rows: of one set of tasks; fits that not every seed has are passed over.
    """
    found: dict[Fit, list[float]] = {}
    for row in label_free(rows):
        if "validation_delta" in row.options:
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
    aligned = {row.seed: row for row in best.rows(rows)}
    experts = {row.seed: row for row in rows if row.method == "experts"}
    ours = {seed: row.delta_ratio for seed, row in aligned.items()}
    theirs = {row.seed: row.delta_ratio for row in rows if row.method == joint}
    mean = statistics.fmean(ours.values())
    measured = f"{mean_spread(ours.values())} against {mean_spread(theirs.values())}"
    if len(both := ours.keys() & theirs.keys()) > 1:
        measured += f"; of {len(both)} seeds at or above it: {sum(ours[seed] >= theirs[seed] for seed in both)}"
    found = [
        Check(f"delta at or above {joint}'s", measured, bool(theirs) and mean >= statistics.fmean(theirs.values())),
        Check(f"delta at or above {LEAST_DELTA:g} %", mean_spread(ours.values()), mean >= LEAST_DELTA),
    ]
    after = {seed: gains(row, experts[seed]) for seed, row in aligned.items()}
    for task in next(iter(aligned.values())).tasks:
        values = {seed: gain[task] for seed, gain in after.items()}
        least = min(values, key=lambda seed: values[seed])
        measured = mean_spread(values.values())
        measured += f"; {mean_spread([values[least]])} at the least (seed {least})" if len(values) > 1 else ""
        met = statistics.fmean(values.values()) >= LEAST_GAIN
        found.append(Check(f"{task} no worse than {LEAST_GAIN:g} %", measured, met))
    return [*found, *_no_task_below(rows, best, experts)]


def _no_task_below(rows: Sequence[ResultRow], best: Fit, experts: Mapping[int, ResultRow]) -> list[Check]:
    """Whether the best fit, and every fit of `label_free`, leaves each task where the bare merge has it, or better.

    Those that do not are named, with the largest loss.
    """
    merged = {(row.method, row.seed): gains(row, experts[row.seed]) for row in rows if "+" not in row.method}
    margins: dict[Fit, list[tuple[float, str]]] = {}
    for row in label_free(rows):
        fit, after = Fit(row.method, used(row)), gains(row, experts[row.seed])
        for task, before in merged.get((fit.merge, row.seed), {}).items():
            margins.setdefault(fit, []).append((after[task] - before, f"{task}, seed {row.seed}"))
    worst = {fit: min(found) for fit, found in margins.items()}
    if best not in worst:
        raise SimoError(f"{best.merge} has no row, which {best} is compared with; run the whole recipe")
    least, where = worst[best]
    below = [f"{fit}: {mean_spread([margin])} ({of})" for fit, (margin, of) in worst.items() if margin < 0]
    return [
        Check(
            "no task below the merge without re-alignment",
            f"{mean_spread([least])} points at the least ({where})",
            least >= 0,
        ),
        Check(f"those below it of all {len(worst)} such fits, points", "; ".join(below) or "none", None),
    ]
