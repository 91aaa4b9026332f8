"""Candidate aligners of one tap, and their cross-validated explained variance."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from simo_merge.realign.folds import FoldedMoments, Reads
from simo_merge.realign.held_out import (
    HeldOut,
    Spectrum,
    diagonal_error,
    output_scale,
    path_errors,
    total_error,
)
from simo_merge.realign.magnitude import magnitudes
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.output_metric import Metrics, OutputMetric
from simo_merge.realign.recalibration import matched

_LOG = logging.getLogger(__name__)

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SIMPLE = ("identity", "shift", "magnitude", "affine")
LINEAR = "linear"


@dataclass(frozen=True)
class Candidate:
    """An aligner that one tap of one task may get.

    kind: one of `SIMPLE`, or "linear" with what it reads, its rank (None: not reduced) and ridge.
    parameters: how many numbers it holds. explained: held-out explained variance of the expert's tokens, each
    channel in units of its deviation; 1 is perfect, 0 what their mean would give.
    """

    kind: str
    parameters: int
    explained: float
    reads: Reads = "own"
    rank: int | None = None
    ridge: float = 0.0

    @property
    def label(self) -> str:
        """What it is called in records: `identity`, `linear own rank 16 ridge 0.01`."""
        if self.kind != LINEAR:
            return self.kind
        return f"{self.kind} {self.reads} {f'rank {self.rank}' if self.rank else 'full'} ridge {self.ridge:g}"


IDENTITY = Candidate("identity", 0, float("nan"))
Cell = tuple[str, int]  # task, tap


@dataclass(frozen=True)
class Grid:
    """Which linear candidates to try, and which simple ones."""

    ranks: tuple[int | None, ...] = (*RANKS, None)
    ridges: tuple[float, ...] = RIDGES
    reads: tuple[Reads, ...] = ("own", "all")
    simple: tuple[str, ...] = SIMPLE


def cross_validate(
    moments: FoldedMoments,
    tasks: Sequence[str],
    grid: Grid,
    metrics: Metrics | None = None,
    precise: bool = False,
) -> dict[Cell, list[Candidate]]:
    """The held-out explained variance of every candidate, for each task and tap.

    Each fold of images is predicted by what the others give; nothing but their moments is read. With one fold
    nothing can be held out, and no candidate is returned.

    Args:
        moments: in folds of images.
        tasks: which of their tasks.
        grid: the candidates.
        metrics: what errors cost, for each task and tap; default: every channel alike, in units of its deviation.
        precise: multiply large matrices in float64; otherwise in float32, with explained variances right to 1e-5.
    """
    kind = torch.float64 if precise else torch.float32
    metrics = metrics or {}
    taps = range(len(moments.widths))
    if len(moments.folds) < 2:
        _LOG.warning("one calibration image says nothing about others: nothing can be chosen by held-out error")
        return {(task, tap): [] for task in tasks for tap in taps}
    total = moments.total()
    errors: dict[Cell, dict[Candidate, float]] = defaultdict(lambda: defaultdict(float))
    for index, fold in enumerate(moments.folds):
        rest = [whole - part for whole, part in zip(total, fold, strict=True)]
        for reads in grid.reads:
            _linear_errors(moments, total, rest, index, tasks, grid, reads, metrics, kind, errors)
        for tap in taps:
            whole, train, test = (moments.tap(m, tap) for m in (total, rest, fold))
            for task in tasks:
                metric = metrics.get((task, tap))
                for candidate, error in _simple_errors(whole, train, test, task, grid.simple, metric, index):
                    errors[task, tap][candidate] += error
    found = {}
    for task, tap in ((task, tap) for task in tasks for tap in taps):
        whole = moments.tap(total, tap)
        folds = [moments.tap(fold, tap) for fold in moments.folds]
        spread = max(total_error(whole, task, output_scale(whole, task), metrics.get((task, tap)), folds), 1e-12)
        found[task, tap] = [replace(c, explained=1 - e / spread) for c, e in errors[task, tap].items()]
    return found


def _simple_errors(
    whole: TapMoments,
    train: TapMoments,
    test: TapMoments,
    task: str,
    kinds: Sequence[str],
    metric: OutputMetric | None,
    fold: int,
) -> list[tuple[Candidate, float]]:
    scale_out, groups = output_scale(whole, task), train.groups
    channels = len(scale_out)
    one, zero = torch.ones_like(scale_out), torch.zeros_like(scale_out)
    found = []
    for kind in kinds:
        if kind == "affine":
            pairs = [matched(group, task) for group in groups]
            parameters = 2 * channels * len(groups)
        elif kind == "magnitude":
            pairs = [(scale * one, zero) for scale in magnitudes(train, task)]
            parameters = len(groups)
        elif kind == "shift":
            pairs = [(one, group.mean_y(task) - group.mean_x()) for group in groups]
            parameters = channels * len(groups)
        else:
            pairs = [(one, zero)] * len(groups)
            parameters = 0
        error = diagonal_error(test, task, [s for s, _ in pairs], [b for _, b in pairs], scale_out, metric, fold)
        found.append((Candidate(kind, parameters, 0.0), error))
    return found


def _linear_errors(
    moments: FoldedMoments,
    total: list[TapMoments],
    rest: list[TapMoments],
    fold: int,
    tasks: Sequence[str],
    grid: Grid,
    reads: Reads,
    metrics: Metrics,
    kind: torch.dtype,
    errors: Mapping[Cell, dict[Candidate, float]],
) -> None:
    """Add what one fold's linear candidates miss; a decomposition serves all tasks, and all taps that read all."""
    spectrum: Spectrum | None = None
    for tap in range(len(moments.widths)):
        whole, train, test = (moments.tap(m, tap, reads) for m in (total, rest, moments.folds[fold]))
        if spectrum is None or reads == "own":
            spectrum = Spectrum.of(train.pooled_xx())
            xx = test.pooled_xx()
            held_out = HeldOut(xx, spectrum.turned(xx, kind))
        for task in tasks:
            scale_out = output_scale(whole, task)
            channels, read = len(scale_out), len(spectrum.values)
            metric = metrics.get((task, tap))
            path = path_errors(spectrum, held_out, train, test, task, scale_out, grid.ridges, metric, fold)
            for rank in dict.fromkeys(None if r is None or r >= channels else r for r in grid.ranks):
                size = linear_size(read, channels, rank) + channels * len(train.groups)
                for ridge, error in zip(grid.ridges, path[:, channels if rank is None else rank].tolist(), strict=True):
                    errors[task, tap][Candidate(LINEAR, size, 0.0, reads, rank, ridge)] += error


def linear_size(read: int, channels: int, rank: int | None) -> int:
    """Numbers in a map (channels, read): two factors of a rank, or the full matrix where that is smaller."""
    full = read * channels
    return full if rank is None else min(full, rank * (read + channels))


def table(found: Mapping[Cell, Sequence[Candidate]]) -> dict[str, list[dict[str, Any]]]:
    """Label -> held-out explained variance of every candidate, for each task a list of taps; plain JSON values."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for (task, _), candidates in found.items():
        tables.setdefault(task, []).append({c.label: round(c.explained, 4) for c in candidates})
    return tables
