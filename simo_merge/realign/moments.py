"""Streamed moments of merged and expert features: all that a linear aligner needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.distributed import add_up
from simo_merge.errors import SimoError

_ROUNDING = 1e-12  # of a channel's sum of squares: a scatter below it is what float32 features leave of a constant


@dataclass
class Moments:
    """Sums over tokens of merged features x (n, C) and, for each task, expert features y (n, C), in float64.

    They add up over batches and workers: count, sum x, X'X, and for each task sum y, X'Y and the diagonal of Y'Y.
    """

    count: int
    x: Tensor
    xx: Tensor
    y: dict[str, Tensor]
    xy: dict[str, Tensor]
    yy: dict[str, Tensor]

    @classmethod
    def of(cls, x: Tensor, targets: Mapping[str, Tensor]) -> Moments:
        """The moments of tokens x (n, C) and targets {task: (n, C)}.

        Raises:
            SimoError: targets of another shape than x.
        """
        for task, target in targets.items():
            if target.shape != x.shape:
                raise SimoError(
                    f"features of {task} have shape {tuple(target.shape)}, the merged ones {tuple(x.shape)}"
                )
        x = x.double()
        wide = {task: target.double() for task, target in targets.items()}
        return cls(
            count=len(x),
            x=x.sum(0),
            xx=x.T @ x,
            y={task: y.sum(0) for task, y in wide.items()},
            xy={task: x.T @ y for task, y in wide.items()},
            yy={task: y.square().sum(0) for task, y in wide.items()},
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            count=self.count + other.count,
            x=self.x + other.x,
            xx=self.xx + other.xx,
            y={task: value + other.y[task] for task, value in self.y.items()},
            xy={task: value + other.xy[task] for task, value in self.xy.items()},
            yy={task: value + other.yy[task] for task, value in self.yy.items()},
        )

    def mean_x(self) -> Tensor:
        """Mean of x, (C,)."""
        return self.x / self.count

    def mean_y(self, task: str) -> Tensor:
        """Mean of y, (C,)."""
        return self.y[task] / self.count

    def scatter_xx(self) -> Tensor:
        """Centred X'X, (C, C); exactly 0 for channels that never vary."""
        varies = self.deviation_x() > 0
        return (self.xx - torch.outer(self.x, self.x) / self.count) * torch.outer(varies, varies)

    def scatter_xy(self, task: str) -> Tensor:
        """Centred X'Y, (C, C); exactly 0 for channels that never vary."""
        varies = torch.outer(self.deviation_x() > 0, self.deviation_y(task) > 0)
        return (self.xy[task] - torch.outer(self.x, self.y[task]) / self.count) * varies

    def deviation_x(self) -> Tensor:
        """Standard deviation of x, (C,); exactly 0 for channels that never vary."""
        return self._deviation(self.x, self.xx.diagonal())

    def deviation_y(self, task: str) -> Tensor:
        """Standard deviation of y, (C,); exactly 0 for channels that never vary."""
        return self._deviation(self.y[task], self.yy[task])

    def _deviation(self, total: Tensor, squares: Tensor) -> Tensor:
        scatter = squares - total.square() / self.count
        return torch.where(scatter > _ROUNDING * squares, scatter, 0.0).div(self.count).sqrt()


@dataclass
class TapMoments:
    """Moments of one tap: of the patches, and of each prefix token apart, for their means differ."""

    patches: Moments
    prefix: list[Moments]

    def __add__(self, other: TapMoments) -> TapMoments:
        pairs = zip(self.prefix, other.prefix, strict=True)
        return TapMoments(self.patches + other.patches, [a + b for a, b in pairs])

    @property
    def groups(self) -> list[Moments]:
        """The patches' moments, then each prefix token's."""
        return [self.patches, *self.prefix]

    @property
    def weights(self) -> list[float]:
        """What a token of each group counts for: a prefix token as much as all patches of its image together.

        Decoders repeat the class token over the whole map, so an error in it is made at every patch.
        """
        return [1.0, *(self.patches.count / group.count for group in self.prefix)]


def add_up_moments(taps: Sequence[TapMoments]) -> None:
    """Replace the moments of this process's images by those of all processes' images, in place."""
    groups = [group for tap in taps for group in tap.groups]
    counts = torch.tensor([group.count for group in groups], dtype=torch.int64)
    sums = [[g.x, g.xx, *g.y.values(), *g.xy.values(), *g.yy.values()] for g in groups]
    add_up([counts, *(tensor for each in sums for tensor in each)])
    for group, count in zip(groups, counts.tolist(), strict=True):
        group.count = count


def tap_moments(
    patches: Tensor, prefix: Tensor, expert_patches: Mapping[str, Tensor], expert_prefix: Mapping[str, Tensor]
) -> TapMoments:
    """Moments of a batch at one tap; patches (n, h*w, C), prefix (n, P, C), and the same of each expert."""
    return TapMoments(
        patches=Moments.of(patches.flatten(0, 1), {t: y.flatten(0, 1) for t, y in expert_patches.items()}),
        prefix=[
            Moments.of(prefix[:, i], {t: y[:, i] for t, y in expert_prefix.items()}) for i in range(prefix.shape[1])
        ],
    )
