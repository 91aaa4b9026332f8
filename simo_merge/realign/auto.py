"""Aligners chosen by held-out error within a budget of parameters."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.models.aligners import CHANNELS, DIRECTIONS
from simo_merge.realign.candidates import IDENTITY, Candidate, Cell, Grid, cross_validate, table
from simo_merge.realign.chosen import TOLERANCE, fitted_aligner, smallest_of_the_best
from simo_merge.realign.decoder_metric import ReadsDecoder
from simo_merge.realign.folds import FOLDS, Reads
from simo_merge.realign.realignment import Calibration, Realignment, count
from simo_merge.realign.running import MomentsWanted
from simo_merge.realign.stretch import Stretch, Stretches, gets_stretch, stretch_size

_LOG = logging.getLogger(__name__)


_STEPS = 4096
"""A budget of more numbers than this is shared out in so many equal parts."""


def useful(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that explain more than every smaller one, by size.

    None is larger than the smallest of those within `TOLERANCE` of the best.
    """
    last = smallest_of_the_best(candidates)
    found: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.parameters, -c.explained)):
        if candidate.parameters <= last.parameters and (not found or candidate.explained > found[-1].explained):
            found.append(candidate)
    return found


def within_budget(cells: Mapping[Cell, Sequence[Candidate]], budget: float) -> dict[Cell, Candidate]:
    """The candidates, one for each task and tap, that explain most in sum with no more parameters than the budget.

    The multiple-choice knapsack, by dynamic programming. It is exact up to a budget of 4096 numbers; of a larger one
    each cell's share is rounded up to a 4096th. Of equally good choices it is the one with fewer parameters.
    """
    kept = {cell: useful(candidates) for cell, candidates in cells.items()}
    largest = {cell: found[-1] for cell, found in kept.items()}
    if sum(candidate.parameters for candidate in largest.values()) <= budget:
        return largest
    unit = max(1.0, budget / _STEPS)
    room = int(budget / unit)
    value, taken = np.zeros(room + 1), {}
    for cell, found in kept.items():
        sums = np.full((len(found), room + 1), -np.inf)
        for place, candidate in enumerate(found):
            share = math.ceil(candidate.parameters / unit)
            if share <= room:
                sums[place, share:] = value[: room + 1 - share] + candidate.explained
        taken[cell], value = sums.argmax(0), sums.max(0)
    left, chosen = int(value.argmax()), {}
    for cell in reversed(kept):
        chosen[cell] = kept[cell][taken[cell][left]]
        left -= math.ceil(chosen[cell].parameters / unit)
    return {cell: chosen[cell] for cell in cells}


def with_stretch(candidates: Sequence[Candidate], stretch: Stretch, channels: int) -> list[Candidate]:
    """The candidates with the numbers of the stretch behind those that get one."""
    size = stretch_size(stretch, channels)
    return [replace(c, parameters=c.parameters + size) if gets_stretch(c.kind, stretch) else c for c in candidates]


@dataclass(frozen=True)
class Auto(ReadsDecoder, Stretches, Realignment):
    """For every task and tap the aligner that explains most on held-out calibration images, within a budget.

    Candidates: the identity, offsets, one magnitude, a scale and shift for every channel, and linear maps of all
    ranks and ridges from the own tap or from all taps. All are judged from one pass of moments, kept apart for five
    folds of images: a tap is changed only where that helps images that the change was not fitted to. Candidates are
    judged as they are before a stretch.

    budget: parameters of all aligners together; below 1 it is a share of the encoder's, None is no limit.
    reads: "own", "all" or "auto" (both are tried): which taps linear maps read.

    objective, floor: see `ReadsDecoder`; explained variance is then a share of what the decoder reads.
    stretch: see `Stretches`; of the taps that are changed, and counted in their parameters.

    The record tells what was chosen and the held-out explained variance of every candidate.
    """

    name: ClassVar[str] = "auto"
    budget: float | None = 0.1
    reads: Literal["own", "all", "auto"] = "auto"
    objective: Literal["features", "decoder"] = "features"
    floor: float = 0.1
    stretch: Stretch = "channels"

    @property
    def label(self) -> str:
        """`auto-stretched` where it stretches along channels, `auto-stretched-directions` along those."""
        return {"none": self.name, CHANNELS: "auto-stretched"}.get(self.stretch, f"auto-stretched-{self.stretch}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and not self.budget >= 0:
            raise SimoError(f"a budget of parameters is a share of the encoder's or a number, got {self.budget}")
        if self.reads not in ("own", "all", "auto"):
            raise SimoError(f"auto reads 'own', 'all' or 'auto' taps, got {self.reads!r}")
        self.check_objective()
        self.check_stretch()

    def limit(self, model: MultiTaskModel) -> float:
        """How many parameters the aligners of this model may have together."""
        if self.budget is None:
            return float("inf")
        encoder = sum(p.numel() for p in model.encoder.parameters())
        return self.budget * encoder if self.budget < 1 else self.budget

    def from_moments(self) -> MomentsWanted | None:
        """Those in folds; a decoder's objective reads features."""
        if self.objective != "features":
            return None
        return MomentsWanted("all" in self._grid().reads, FOLDS, alone=self.stretch == DIRECTIONS)

    def _grid(self) -> Grid:
        both: tuple[Reads, ...] = ("own", "all")
        return Grid(reads=both if self.reads == "auto" else (self.reads,))

    def for_one_of(self, tasks: int) -> Auto:
        """The budget is shared out evenly."""
        if self.budget is None:
            return self
        share = self.budget / tasks
        return replace(self, budget=share if self.budget < 1 else max(share, 1.0))

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Choose and solve each tap and task."""
        grid = self._grid()
        moments = given.folded(joint="all" in grid.reads).to(given.device)
        metrics = self.metrics(model, given, moments.of_taps())
        cells = cross_validate(moments, list(model.tasks), grid, metrics)
        judged = {
            (task, tap): with_stretch(candidates, self.stretch, moments.widths[tap])
            for (task, tap), candidates in cells.items()
            if candidates
        }
        spreads = self.spreads(given)
        chosen = {**dict.fromkeys(cells, IDENTITY), **within_budget(judged, self.limit(model))}
        fitted = 0
        for task in model.tasks:
            of_task = [chosen[task, tap] for tap in range(len(moments.widths))]
            aligner = fitted_aligner(model, moments, task, of_task, metrics, self.stretch, spreads)
            if aligner is not None:
                model.aligners[task] = aligner
                fitted += count(aligner)
        rows = explanation(judged, chosen, model.encoder.taps, self.stretch)
        for row in rows:
            _LOG.info("%s, block %s: %s", row["task"], row["block"], row["because"])
        given.record.update(chosen=rows, held_out=table(cells))
        return fitted


def explanation(
    cells: Mapping[Cell, Sequence[Candidate]],
    chosen: Mapping[Cell, Candidate],
    blocks: Sequence[int],
    stretch: Stretch,
) -> list[dict[str, Any]]:
    """A row for each task and tap: what was chosen, its parameters and held-out explained variance, and why."""
    rows = []
    for (task, tap), candidate in chosen.items():
        row: dict[str, Any] = {"task": task, "block": blocks[tap], "aligner": candidate.label}
        row["parameters"] = candidate.parameters
        if (task, tap) in cells:
            candidates = cells[task, tap]
            before = next(c for c in candidates if c.kind == IDENTITY.kind)
            best = smallest_of_the_best(candidates)
            row["explained_before"] = round(before.explained, 4)
            row["explained"] = round(candidate.explained, 4)
            row["because"] = _reason(candidate, before, best, gets_stretch(candidate.kind, stretch))
        else:
            row["because"] = "left as it is: one image leaves nothing to judge an aligner by"
        rows.append(row)
    return rows


def _reason(candidate: Candidate, before: Candidate, best: Candidate, stretched: bool) -> str:
    said = (
        f"{candidate.label} explains {candidate.explained:.1%} of held-out features"
        f"{' (before the stretch)' if stretched else ''}, unaligned {before.explained:.1%}"
    )
    if candidate.explained < best.explained - TOLERANCE:
        return f"{said}; {best.label} would explain {best.explained:.1%}, but does not fit the budget"
    return f"{said}; nothing smaller explains as much"
