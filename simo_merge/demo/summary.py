"""The demo's outcome in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simo_merge.data import DenseDataset
from simo_merge.demo.photos import CREDITS
from simo_merge.merging import TaskArithmetic
from simo_merge.realign import LinearSurgery
from simo_merge.results import ResultRow
from simo_merge.selection import Selection

MERGED = TaskArithmetic.name
SHOWN = f"{MERGED}+{LinearSurgery().label}"
"""The re-alignment that the demo shows: the model it leaves, its pictures, its verdict."""


def won_back(rows: Sequence[ResultRow]) -> float:
    """Share of the merge's loss (delta in ratio form) that closed-form surgery wins back.

    NaN where the merge lost nothing, as with experts that learned nothing, or where delta could not be measured.
    """
    before, after = _row(rows, MERGED).delta_ratio, _row(rows, SHOWN).delta_ratio
    return (after - before) / -before if before < 0 else math.nan


def verdict(rows: Sequence[ResultRow], forward: tuple[float, float]) -> str:
    """The outcome in one sentence; `forward` has the seconds of a forward pass, (experts, multi-task model)."""
    before, after = _row(rows, MERGED).delta_ratio, _row(rows, SHOWN).delta_ratio
    share = won_back(rows)
    passes = f"one forward pass takes {100 * forward[1] / forward[0]:.0f} % of the experts' time."
    if not math.isfinite(share):
        return (
            f"Merging three experts into one encoder left no loss to win back (delta {_percent(before)}, after "
            f"closed-form surgery {_percent(after)}), so these experts have learned too little to judge by; {passes}"
        )
    return (
        f"Merging three experts into one encoder costs {-before:.1f} % of their performance; closed-form surgery, "
        f"fitted without labels in {_row(rows, SHOWN).fit_seconds:.1f} s, wins back {100 * share:.0f} % of that loss "
        f"(delta {_percent(after)}), and {passes}"
    )


def _row(rows: Sequence[ResultRow], method: str) -> ResultRow:
    return next(row for row in rows if row.method == method)


def _percent(value: float) -> str:
    return f"{value:+.1f} %" if math.isfinite(value) else "not measured"


def notes(selection: Selection, splits: Mapping[str, DenseDataset]) -> list[str]:
    """What a reader must know to take the numbers for what they are, and the credits."""
    tried = ", ".join(f"{scale:g}: {value:.3f}" for scale, value in selection.scores.items())
    return [
        f"The rooms are rendered, not photographed: {len(splits['train'])} labelled images trained each expert, "
        f"{len(splits['calibration'])} other images were used for calibration, and the scores are on "
        f"{len(splits['test'])} images that nothing was fitted or chosen on. A figure here is no figure on NYUv2.",
        f"The coefficient of task arithmetic, {selection.scale:g}, was chosen by "
        f"{selection.criterion} ({tried}); no label was used.",
        "The distances at the taps are measured on the validation split, which nothing was fitted on.",
        "The rooms show furniture models of Sweet Home 3D's contributors (CC BY 3.0 and CC0; every creator is named "
        "in the data set's MODELS.csv and README.md).",
        CREDITS,
    ]
