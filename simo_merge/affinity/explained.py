"""Affinity from unlabelled images: how much of an expert's features can be had from others by a linear map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from simo_merge.affinity.seen import Seen
from simo_merge.realign import CalibrationFeatures, Features
from simo_merge.realign.candidates import LINEAR, Grid, cross_validate
from simo_merge.realign.folds import folded_moments


@dataclass(frozen=True)
class Fit:
    """How features are predicted: a map of this rank (None: not reduced), ridge relative to unit variance.

    folds: K runs of images; each is predicted by what the others give.
    """

    rank: int | None
    ridge: float
    folds: int


@dataclass(frozen=True)
class Explained:
    """Held-out explained variance of the experts' features, by task, for each tap; before a map and after it.

    1 - squared error / squared deviations from the mean, each channel in units of its deviation; 1 is perfect, 0 what
    the mean would give. NaN with one fold, which leaves nothing to fit to.
    """

    before: dict[str, list[float]]
    after: dict[str, list[float]]


def explained(source: Features, targets: Mapping[str, Features], fit: Fit) -> Explained:
    """How much of the targets' features a map from the source's predicts on held-out images, as re-alignment does.

    The map is Z + W Z + b, ridge drawing W to 0: experts of one base share its coordinates, and equal features are
    explained entirely. Moments take one pass for all targets. Source: `realign.closed_form.reduced_rank_ridge`.
    """
    moments = folded_moments(CalibrationFeatures(source, targets), joint=False, folds=fit.folds)
    grid = Grid(ranks=(fit.rank,), ridges=(fit.ridge,), reads=("own",), simple=("identity",))
    cells = cross_validate(moments, list(targets), grid)
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for (task, _), candidates in cells.items():
        by_kind = {candidate.kind: candidate.explained for candidate in candidates}
        before.setdefault(task, []).append(by_kind.get("identity", float("nan")))
        after.setdefault(task, []).append(by_kind.get(LINEAR, float("nan")))
    return Explained(before, after)


def explained_by_each(seen: Mapping[str, Seen], fit: Fit) -> list[Tensor]:
    """For each tap, (T, T): [s, t] is the explained variance of expert t's features from those of expert s."""
    tasks, found = list(seen), _unknown(seen, diagonal=1.0)
    for s, source in enumerate(tasks):
        others = {task: seen[task].features for task in tasks if task != source}
        for task, taps in explained(seen[source].features, others, fit).after.items():
            for tap, value in zip(found, taps, strict=True):
                tap[s, tasks.index(task)] = value
    return found


def explained_by_average(seen: Mapping[str, Seen], fit: Fit) -> list[Tensor]:
    """For each tap, (T, T): [s, t] is the explained variance of expert t's features from the mean of both experts'.

    That mean stands for what an encoder merged of the two would give, to first order in the task vectors; none is
    merged nor run.
    """
    averages = (((s, t), _average(seen[s].features, seen[t].features)) for s, t in combinations(seen, 2))
    return explained_by_pairs(averages, seen, fit)[1]


def explained_by_pairs(
    merged: Iterator[tuple[tuple[str, str], Features]], seen: Mapping[str, Seen], fit: Fit
) -> tuple[list[Tensor], list[Tensor]]:
    """The same from features of any merge of each pair, (before, after) the map; on the diagonal 1: no merge at all."""
    tasks = list(seen)
    before, after = _unknown(seen, diagonal=1.0), _unknown(seen, diagonal=1.0)
    for pair, features in merged:
        found = explained(features, {task: seen[task].features for task in pair}, fit)
        for source, target in (pair, pair[::-1]):
            s, t = tasks.index(source), tasks.index(target)
            for tap in range(len(before)):
                before[tap][s, t] = found.before[target][tap]
                after[tap][s, t] = found.after[target][tap]
    return before, after


def _average(one: Features, other: Features) -> Features:
    return Features(
        tuple((a + b) / 2 for a, b in zip(one.patches, other.patches, strict=True)),
        tuple((a + b) / 2 for a, b in zip(one.prefix, other.prefix, strict=True)),
        one.grid,
        one.image_size,
        one.keys,
        one.whole,
    )


def _unknown(seen: Mapping[str, Seen], diagonal: float) -> list[Tensor]:
    taps: Sequence[Tensor] = next(iter(seen.values())).features.patches
    empty = torch.full((len(seen), len(seen)), torch.nan, dtype=torch.float64)
    return [empty.clone().fill_diagonal_(diagonal) for _ in taps]
