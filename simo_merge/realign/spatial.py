"""Linear surgery that reads the neighbours of a patch, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.models.aligners import SpatialTap
from simo_merge.realign.closed_form import scale_of, set_offsets, solve_change
from simo_merge.realign.features import CalibrationFeatures, refuse_share
from simo_merge.realign.moments import TapMoments, tap_moments
from simo_merge.realign.realignment import Calibration, Realignment, check_rank, count, feature_moments, new_aligner

_NEIGHBOURS = tuple((dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1))


def leading_directions(moments: TapMoments, directions: int) -> tuple[Tensor, Tensor]:
    """The first principal directions P (k, C) of a tap, channels in units of their deviation, and -P mean (k,).

    Picked values vary about 0 over the patches, so the zeros around a map stand for an average patch.
    """
    xx = moments.pooled_xx()
    scale = scale_of(xx)
    _, vectors = torch.linalg.eigh(xx / torch.outer(scale, scale))
    deviation = moments.patches.deviation_x()
    varies = deviation > 0
    pick = (vectors[:, -directions:] * (varies / deviation.where(varies, torch.ones_like(deviation)))[:, None]).T
    return pick, -(pick @ moments.patches.mean_x())


def surroundings(patches: Tensor, pick: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """The picked values of the eight neighbours of every patch: (n, h*w, C) -> (n, h*w, 8 k), 0 outside the map."""
    height, width = grid
    picked = (patches @ pick.T.to(patches) + bias.to(patches)).reshape(len(patches), height, width, len(pick))
    padded = torch.nn.functional.pad(picked, (0, 0, 1, 1, 1, 1))
    around = [padded[:, dy : dy + height, dx : dx + width] for dy, dx in _NEIGHBOURS]
    return torch.cat(around, dim=-1).flatten(1, 2)


def spatial_moments(features: CalibrationFeatures, tap: int, pick: Tensor, bias: Tensor, chunk: int = 64) -> TapMoments:
    """Moments of the tokens with their surroundings beside their own channels; those of prefix tokens are 0."""
    refuse_share(features)
    merged, total = features.merged, None
    for start in range(0, len(merged), chunk):
        part = features.subset(slice(start, start + chunk))
        patches, prefix = part.merged.patches[tap].float(), part.merged.prefix[tap].float()
        around = surroundings(patches, pick, bias, merged.grid)
        found = tap_moments(
            torch.cat([patches, around], dim=-1),
            torch.cat([prefix, prefix.new_zeros(*prefix.shape[:2], around.shape[-1])], dim=-1),
            {task: f.patches[tap] for task, f in part.experts.items()},
            {task: f.prefix[tap] for task, f in part.experts.items()},
            wider=True,
        )
        total = found if total is None else total + found
    assert total is not None
    return total


def fit_spatial(moments: TapMoments, task: str, tap: SpatialTap, pick: Tensor, bias: Tensor, ridge: float) -> None:
    """Set a spatial aligner to its least-squares solution: a map of reduced rank from tokens and surroundings."""
    channels = tap.down.in_features
    change = solve_change(moments, task, tap.down.out_features, ridge)
    around = change.down[:, channels:].reshape(-1, len(_NEIGHBOURS), len(pick))  # (r, 8, k)
    with torch.no_grad():
        tap.down.weight.copy_(change.down[:, :channels])
        tap.up.weight.copy_(change.up)
        tap.pick.weight.copy_(pick)
        tap.pick.bias.copy_(bias)
        for index, (dy, dx) in enumerate(_NEIGHBOURS):
            tap.around[:, :, dy, dx] = around[:, index]
    set_offsets(tap.patch_offset, tap.prefix_offset, change.offsets)


@dataclass(frozen=True)
class Spatial(Realignment):
    """Linear surgery whose correction of a patch also reads the 3 x 3 patches around it, in closed form.

    The neighbours enter by their first principal directions, the same for all tasks; given those the problem is
    linear, and its solution exact. Captured features are read twice, images once.

    rank: of each tap's map. ridge: relative to unit variance. directions: read of each neighbour.
    """

    name: ClassVar[str] = "spatial"
    rank: int = 64
    ridge: float = 0.01
    directions: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, self.ridge)
        if self.directions < 1:
            raise SimoError(f"directions read of each neighbour must be 1 or more, got {self.directions}")

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve each tap and task."""
        channels = model.encoder.tap_channels
        rank, directions = min(self.rank, *channels), min(self.directions, *channels)
        aligners = {task: new_aligner(model, "spatial", rank=rank, directions=directions) for task in model.tasks}
        for tap, alone in enumerate(feature_moments(given.features)):
            pick, bias = leading_directions(alone, directions)
            moments = spatial_moments(given.features, tap, pick, bias)
            for task, aligner in aligners.items():
                fit_spatial(moments, task, cast(SpatialTap, aligner.taps[tap]), pick, bias, self.ridge)
        for task, aligner in aligners.items():
            model.aligners[task] = aligner
        return sum(count(aligner) for aligner in aligners.values())
