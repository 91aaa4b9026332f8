"""Token-conditioned linear surgery: a map for the patches and one for each prefix token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simo_merge.models import MultiTaskModel
from simo_merge.models.aligners import TokenLinearTap
from simo_merge.realign.closed_form import error_scale, reduced_rank_ridge, set_offsets, solve_change
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.realignment import Calibration, TapwiseRealignment, check_rank, fit_each_tap


def fit_token_linear(moments: TapMoments, task: str, tap: TokenLinearTap, ridge: float, prefix_ridge: float) -> None:
    """Fit a map to each group of tokens, drawn by its ridge to the map that all tokens would share.

    With A the shared map (`solve_change`, full rank), each group's is the least, of the tap's rank, of

        || (D - X A_g') / scale_out ||^2 + ridge || (A_g - A)' scaled ||^2.

    An image holds a single prefix token of each kind, so theirs lean on A more than the patches' does.
    """
    own = moments.own(task)
    shared = solve_change(moments, task, None, ridge)
    towards = (shared.up @ shared.down).T
    scale_out = error_scale(moments.patches.deviation_y(task))
    offsets = []
    for index, (group, change) in enumerate(zip(moments.groups, tap.changes(), strict=True)):
        xx = group.scatter_xx()
        rank = len(scale_out) if change.rank is None else change.rank
        found = reduced_rank_ridge(
            xx,
            group.scatter_xy(task) - xx[:, own],
            scale_out,
            rank,
            prefix_ridge if index else ridge,
            towards,
        )
        change.set(found.down, found.up)
        mean = group.mean_x()
        offsets.append(group.mean_y(task) - mean[own] - found.up @ (found.down @ mean))
    set_offsets(tap.patch_offset, tap.prefix_offset, offsets)


@dataclass(frozen=True)
class TokenLinear(TapwiseRealignment):
    """Z + M_g Z + b_g: linear surgery with a map of its own for the patches and for each prefix token.

    rank: of each map; None for full matrices. ridge: of the patches' map, prefix_ridge: of those of prefix tokens,
    both relative to unit variance and towards the map that all tokens share.
    """

    name: ClassVar[str] = "token-linear"
    rank: int | None = 64
    ridge: float = 0.01
    prefix_ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for ridge in (self.ridge, self.prefix_ridge):
            check_rank(1 if self.rank is None else self.rank, ridge)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve each tap and task."""
        rank = None if self.rank is None else min(self.rank, *model.encoder.tap_channels)

        def write(moments: TapMoments, task: str, tap: TokenLinearTap) -> None:
            fit_token_linear(moments, task, tap, self.ridge, self.prefix_ridge)

        return fit_each_tap(model, given, "token-linear", write, rank=rank)
