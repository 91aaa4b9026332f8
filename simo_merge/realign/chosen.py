"""From the candidate chosen for each tap to a fitted aligner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from simo_merge.models import Aligner, MultiTaskModel
from simo_merge.models.aligners import (
    PER_TAP,
    AffineTap,
    CrossTapTap,
    FullAffineTap,
    LinearSurgeryTap,
    MagnitudeTap,
    ShiftTap,
    TapAligner,
)
from simo_merge.realign.candidates import LINEAR, Candidate, linear_size
from simo_merge.realign.closed_form import TapChange, set_offsets, solve_change
from simo_merge.realign.folds import FoldedMoments
from simo_merge.realign.magnitude import write_magnitudes
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.output_metric import Metrics, OutputMetric
from simo_merge.realign.realignment import new_aligner
from simo_merge.realign.recalibration import fit_affine
from simo_merge.realign.stretch import Spreads, Stretch, gets_stretch, stretch_patches, unstretched

# Held-out explained variances closer than this are taken to be equal, and the smaller aligner wins.
TOLERANCE = 1e-3


def smallest_of_the_best(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the fewest parameters out of those within `TOLERANCE` of the best."""
    best = max(c.explained for c in candidates)
    return min((c for c in candidates if c.explained >= best - TOLERANCE), key=lambda c: (c.parameters, -c.explained))


def fitted_aligner(
    model: MultiTaskModel,
    moments: FoldedMoments,
    task: str,
    chosen: Sequence[Candidate],
    metrics: Metrics | None = None,
    stretch: Stretch = "none",
    spreads: Spreads | None = None,
) -> Aligner | None:
    """An aligner with the chosen candidate at each tap, fitted to all images; None where no tap is changed.

    stretch, spreads: of the taps that are changed (`gets_stretch`), and what `Stretches.spreads` gives for it.
    """
    if all(c.kind == "identity" for c in chosen):
        return None
    total, widths = moments.total(), moments.widths
    each = [_options(c, sum(widths) if c.reads == "all" else widths[i], widths[i]) for i, c in enumerate(chosen)]
    along = {"stretched": stretch}
    each = [e | along if gets_stretch(c.kind, stretch) else e for e, c in zip(each, chosen, strict=True)]
    aligner = new_aligner(model, PER_TAP, each=each)
    for index, (candidate, module) in enumerate(zip(chosen, aligner.taps, strict=True)):
        found = moments.tap(total, index, candidate.reads)
        tap = cast(TapAligner, module)
        fit_candidate(candidate, found, task, unstretched(tap), (metrics or {}).get((task, index)))
        stretch_patches(tap, found, task, (spreads or {}).get((task, index)))
    return aligner


def _options(candidate: Candidate, read: int, channels: int) -> dict[str, Any]:
    if candidate.kind != LINEAR:
        return {"kind": candidate.kind}
    rank = candidate.rank
    if linear_size(read, channels, rank) == read * channels:
        rank = None  # the full matrix is no larger than factors
    if candidate.reads == "all":
        return {"kind": "cross-tap", "rank": rank}
    return {"kind": "full-affine"} if rank is None else {"kind": "linear-surgery", "rank": rank}


def fit_candidate(
    candidate: Candidate, moments: TapMoments, task: str, tap: TapAligner, metric: OutputMetric | None = None
) -> None:
    """Fit a fresh tap aligner of the candidate's kind to these moments."""
    if isinstance(tap, ShiftTap):
        own = moments.own(task)
        set_offsets(tap.patch_offset, tap.prefix_offset, [g.mean_y(task) - g.mean_x()[own] for g in moments.groups])
    elif isinstance(tap, MagnitudeTap):
        write_magnitudes(moments, task, tap)
    elif isinstance(tap, AffineTap):
        fit_affine(moments, task, tap)
    elif isinstance(tap, LinearSurgeryTap | FullAffineTap | CrossTapTap):
        write_change(tap, solve_change(moments, task, candidate.rank, candidate.ridge, metric))


def write_change(tap: LinearSurgeryTap | FullAffineTap | CrossTapTap, change: TapChange) -> None:
    """Set the map and the offsets of a tap aligner."""
    if isinstance(tap, LinearSurgeryTap):
        tap.down.weight.data.copy_(change.down)
        tap.up.weight.data.copy_(change.up)
    else:
        tap.change.set(change.down, change.up)
    set_offsets(tap.patch_offset, tap.prefix_offset, change.offsets)
