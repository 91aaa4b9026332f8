"""Linear surgery in closed form, with its options given or chosen by held-out error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from simo_merge.errors import SimoError
from simo_merge.models import Aligner, MultiTaskModel
from simo_merge.models.aligners import DIRECTIONS, CrossTapTap, FullAffineTap, LinearSurgeryTap, TapAligner
from simo_merge.realign.candidates import IDENTITY, RANKS, RIDGES, Grid, cross_validate, table
from simo_merge.realign.chosen import fitted_aligner, smallest_of_the_best, write_change
from simo_merge.realign.closed_form import solve_change
from simo_merge.realign.decoder_metric import ReadsDecoder
from simo_merge.realign.folds import FOLDS, FoldedMoments, Reads
from simo_merge.realign.realignment import Calibration, Realignment, check_rank, count, new_aligner
from simo_merge.realign.running import MomentsWanted
from simo_merge.realign.stretch import Stretch, Stretches, stretch_patches, unstretched

AUTO = "auto"


@dataclass(frozen=True)
class LinearSurgery(ReadsDecoder, Stretches, Realignment):
    """Linear surgery in closed form: Z + W_up W_down Z + b for each task and tap, one pass of moments.

    rank: of the map; a rank above the channels means no reduction, None the same in one full matrix.
    ridge: relative to unit variance.
    reads: "own", each tap is corrected from itself; "all", from the taps of all depths concatenated.

    Each of them can be "auto": it is then chosen for every tap and task by the error on held-out folds of the
    calibration images, before a stretch, along with whether the tap is to be changed at all. The record tells what
    was chosen, and the held-out explained variance of every candidate. One image leaves nothing to hold out: nothing
    is changed.

    objective, floor: see `ReadsDecoder`. stretch: see `Stretches`.

    Source: ridge regression of reduced rank (see `closed_form.reduced_rank_ridge`); the form is that of
    arXiv 2402.02705, equation 4, without its ReLU.
    """

    name: ClassVar[str] = "surgery-closed-form"
    rank: int | Literal["auto"] | None = 64
    ridge: float | Literal["auto"] = 0.01
    reads: Literal["own", "all", "auto"] = "own"
    objective: Literal["features", "decoder"] = "features"
    floor: float = 0.1
    stretch: Stretch = "directions"

    @property
    def label(self) -> str:
        """`surgery-stretched` where it stretches along directions, `surgery-stretched-channels` along those."""
        return {"none": self.name, DIRECTIONS: "surgery-stretched"}.get(
            self.stretch, f"surgery-stretched-{self.stretch}"
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads not in ("own", "all", AUTO):
            raise SimoError(f"closed-form surgery reads 'own', 'all' or {AUTO!r} taps, got {self.reads!r}")
        check_rank(self.rank if isinstance(self.rank, int) else 1, 1.0 if isinstance(self.ridge, str) else self.ridge)
        self.check_objective()
        self.check_stretch()

    def from_moments(self) -> MomentsWanted | None:
        """Those in folds where something is to be chosen; a decoder's objective reads features."""
        if self.objective != "features":
            return None
        alone = self.stretch == DIRECTIONS
        if AUTO in (self.rank, self.ridge, self.reads):
            return MomentsWanted("all" in self._grid().reads, FOLDS, alone)
        return MomentsWanted(self.reads == "all", alone=alone)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve each tap and task."""
        if AUTO in (self.rank, self.ridge, self.reads):
            return self._choose(model, given)
        assert not isinstance(self.rank, str)
        assert not isinstance(self.ridge, str)
        fitted = 0
        joint = given.folded(joint=True, folds=1) if self.reads == "all" else None
        moments = given.moments() if joint is None else []
        total = [] if joint is None else joint.total()
        taps = range(len(model.encoder.tap_channels))
        own = moments or [cast(FoldedMoments, joint).tap(total, index) for index in taps]
        metrics = self.metrics(model, given, own)
        spreads = self.spreads(given)
        for task in model.tasks:
            aligner = self._fresh(model)
            for index, module in enumerate(aligner.taps):
                tap = moments[index] if joint is None else joint.tap(total, index, "all")
                channels = model.encoder.tap_channels
                rank = None if self.rank is None else min(self.rank, *channels)
                change = solve_change(tap, task, rank, self.ridge, metrics.get((task, index)))
                within = unstretched(cast(TapAligner, module))
                write_change(cast(LinearSurgeryTap | FullAffineTap | CrossTapTap, within), change)
                stretch_patches(cast(TapAligner, module), tap, task, spreads.get((task, index)))
            model.aligners[task] = aligner
            fitted += count(aligner)
        return fitted

    def _fresh(self, model: MultiTaskModel) -> Aligner:
        assert not isinstance(self.rank, str)
        rank = None if self.rank is None else min(self.rank, *model.encoder.tap_channels)
        more: dict[str, Any] = self.stretched_by()
        if self.reads == "all":
            return new_aligner(model, "cross-tap", rank=rank, **more)
        if rank is None:
            return new_aligner(model, "full-affine", **more)
        return new_aligner(model, "linear-surgery", rank=rank, **more)

    def _grid(self) -> Grid:
        both: tuple[Reads, ...] = ("own", "all")
        return Grid(
            ranks=(*RANKS, None) if self.rank == AUTO else (cast(int | None, self.rank),),
            ridges=RIDGES if self.ridge == AUTO else (float(self.ridge),),
            reads=both if self.reads == AUTO else (cast(Reads, self.reads),),
            simple=("identity", "shift") if self.rank == AUTO else ("identity",),
        )

    def _choose(self, model: MultiTaskModel, given: Calibration) -> int:
        grid = self._grid()
        moments = given.folded(joint="all" in grid.reads).to(given.device)
        metrics = self.metrics(model, given, moments.of_taps())
        candidates = cross_validate(moments, list(model.tasks), grid, metrics)
        spreads = self.spreads(given)
        fitted, told = 0, {}
        for task in model.tasks:
            cells = [candidates[task, tap] for tap in range(len(moments.widths))]
            chosen = [smallest_of_the_best(cell) if cell else IDENTITY for cell in cells]
            told[task] = [c.label for c in chosen]
            aligner = fitted_aligner(model, moments, task, chosen, metrics, self.stretch, spreads)
            if aligner is not None:
                model.aligners[task] = aligner
                fitted += count(aligner)
        given.record.update(chosen=told, held_out=table(candidates))
        return fitted
