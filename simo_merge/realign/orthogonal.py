"""Orthogonal Procrustes: the merged features of a tap, turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.models.aligners import FullAffineTap
from simo_merge.realign.chosen import write_change
from simo_merge.realign.closed_form import TapChange, error_scale
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.realignment import Calibration, TapwiseRealignment, fit_each_tap

_TINY = 1e-9


def procrustes(xx: Tensor, xy: Tensor, scaled: bool) -> tuple[Tensor, float]:
    """The orthogonal R (C, C) and the scale s for which || Y - s X R ||^2 is least.

    With X'Y = U S V', R = U V' and s = tr(S) / tr(X'X); s = 1 unless `scaled`. Directions that the features tell
    nothing of, because fewer tokens than channels vary, are turned as little as the others allow.

    Args:
        xx: X'X, (C, C). xy: X'Y, (C, C).

    Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem, 1966.
    """
    size = torch.linalg.matrix_norm(xy)
    still = size * _TINY if size > 0 else torch.ones_like(size)
    u, _, vh = torch.linalg.svd(xy + still * torch.eye(len(xy), dtype=xy.dtype, device=xy.device))
    turn = u @ vh
    spread = float(xx.trace())
    scale = float((turn * xy).sum()) / spread if scaled and spread > 0 else 1.0
    return turn, scale


def solve_procrustes(moments: TapMoments, task: str, scaled: bool, units: str) -> TapChange:
    """The turn of one tap and task, with the means of the groups of tokens carried over exactly."""
    xx, xy = moments.pooled_xx(), moments.pooled_xy(task)
    unit = error_scale(moments.patches.deviation_y(task)) if units == "expert" else torch.ones_like(xx[0])
    turn, scale = procrustes(xx / torch.outer(unit, unit), xy / torch.outer(unit, unit), scaled)
    matrix = scale * turn.T * unit[:, None] / unit  # tokens are columns here
    eye = torch.eye(len(unit), dtype=matrix.dtype, device=matrix.device)
    return TapChange.with_means(moments, task, matrix - eye, eye)


@dataclass(frozen=True)
class Procrustes(TapwiseRealignment):
    """s R Z + b for each task and tap, R orthogonal: lengths and angles of the features stay what they are.

    scaled: fit s as well; otherwise it is 1.
    units: in which R is orthogonal: "expert", every channel divided by its deviation in the expert's features, so
    that a few huge channels do not decide; or "raw".

    Source: MOMA (arXiv 2412.13526) turns the merged encoder's output by an orthogonal map; here every tap is turned.
    """

    name: ClassVar[str] = "orthogonal"
    scaled: bool = True
    units: Literal["expert", "raw"] = "expert"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units not in ("expert", "raw"):
            raise SimoError(f"units are 'expert' or 'raw', got {self.units!r}")

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve each tap and task."""

        def write(moments: TapMoments, task: str, tap: FullAffineTap) -> None:
            write_change(tap, solve_procrustes(moments, task, self.scaled, self.units))

        return fit_each_tap(model, given, "full-affine", write)
