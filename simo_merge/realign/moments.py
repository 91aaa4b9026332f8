"""Streamed moments of merged and expert features: all that a linear aligner needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from simo_merge.distributed import add_up
from simo_merge.errors import SimoError

_ROUNDING = 1e-12  # of a channel's sum of squares: a scatter below it is what float32 features leave of a constant


def summing_device(device: torch.device | str) -> torch.device:
    """The device itself where float64 can be computed there, else the CPU."""
    found = torch.device(device)
    return found if found.type in ("cpu", "cuda") else torch.device("cpu")


@dataclass
class Moments:
    """Sums over tokens of merged features x (n, D) and, for each task, expert features y (n, C), in float64.

    They add up over batches and workers: count, sum x, X'X, and for each task sum y, X'Y and the diagonal of Y'Y.
    D is C, but in a `block` that reads more than it predicts. With T tasks they take 8 (D + T C) D bytes.
    """

    count: int
    x: Tensor
    xx: Tensor
    y: dict[str, Tensor]
    xy: dict[str, Tensor]
    yy: dict[str, Tensor]

    @classmethod
    def of(cls, x: Tensor, targets: Mapping[str, Tensor], precise: bool = True, wider: bool = False) -> Moments:
        """The moments of tokens x (n, D) and targets {task: (n, C)}.

        precise: multiply in float64. Otherwise in float32, about twice as fast and with half the memory, after the
        batch's mean is taken off every channel, so that a large mean costs no digits: scatters are right to 1e-6.
        wider: x may have other channels than the targets.

        Raises:
            SimoError: targets of another shape than x.
        """
        for task, target in targets.items():
            if (target.shape[0] if wider else target.shape) != (x.shape[0] if wider else x.shape):
                raise SimoError(
                    f"features of {task} have shape {tuple(target.shape)}, the merged ones {tuple(x.shape)}"
                )
        x, about_x = _about_mean(x, precise)
        wide, about = {}, {}
        for task, target in targets.items():
            wide[task], about[task] = _about_mean(target, precise)
        count = len(x)
        # With x = a + m: X'Y = A'B + sum a n' + m sum b' + n m n'; sums of a and b are those that rounding left.
        sums = {task: y.sum(0, dtype=torch.float64) for task, y in wide.items()}
        of_x = x.sum(0, dtype=torch.float64)
        return cls(
            count=count,
            x=of_x + count * about_x,
            xx=_about_zero((x.T @ x).double(), of_x, of_x, about_x, about_x, count),
            y={task: sums[task] + count * about[task] for task in wide},
            xy={
                task: _about_zero((x.T @ y).double(), of_x, sums[task], about_x, about[task], count)
                for task, y in wide.items()
            },
            yy={
                task: y.double().square().sum(0) + about[task] * (2 * sums[task] + count * about[task])
                for task, y in wide.items()
            },
        )

    def block(self, reads: slice, predicts: slice) -> Moments:
        """The moments of some channels of x and some of y; views, nothing is copied."""
        return Moments(
            count=self.count,
            x=self.x[reads],
            xx=self.xx[reads, reads],
            y={task: value[predicts] for task, value in self.y.items()},
            xy={task: value[reads, predicts] for task, value in self.xy.items()},
            yy={task: value[predicts] for task, value in self.yy.items()},
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

    def __sub__(self, other: Moments) -> Moments:
        return self + Moments(
            count=-other.count,
            x=-other.x,
            xx=-other.xx,
            y={task: -value for task, value in other.y.items()},
            xy={task: -value for task, value in other.xy.items()},
            yy={task: -value for task, value in other.yy.items()},
        )

    def to(self, device: torch.device) -> Moments:
        """The same moments on a device."""
        return Moments(
            count=self.count,
            x=self.x.to(device),
            xx=self.xx.to(device),
            y={task: value.to(device) for task, value in self.y.items()},
            xy={task: value.to(device) for task, value in self.xy.items()},
            yy={task: value.to(device) for task, value in self.yy.items()},
        )

    def mean_x(self) -> Tensor:
        """Mean of x, (D,)."""
        return self.x / self.count

    def mean_y(self, task: str) -> Tensor:
        """Mean of y, (C,)."""
        return self.y[task] / self.count

    def scatter_xx(self) -> Tensor:
        """Centred X'X, (D, D); exactly 0 for channels that never vary."""
        varies = self.deviation_x() > 0
        return (self.xx - torch.outer(self.x, self.x) / self.count) * torch.outer(varies, varies)

    def scatter_xy(self, task: str) -> Tensor:
        """Centred X'Y, (D, C); exactly 0 for channels that never vary."""
        varies = torch.outer(self.deviation_x() > 0, self.deviation_y(task) > 0)
        return (self.xy[task] - torch.outer(self.x, self.y[task]) / self.count) * varies

    def deviation_x(self) -> Tensor:
        """Standard deviation of x, (D,); exactly 0 for channels that never vary."""
        return self._deviation(self.x, self.xx.diagonal())

    def deviation_y(self, task: str) -> Tensor:
        """Standard deviation of y, (C,); exactly 0 for channels that never vary."""
        return self._deviation(self.y[task], self.yy[task])

    def _deviation(self, total: Tensor, squares: Tensor) -> Tensor:
        scatter = squares - total.square() / self.count
        return torch.where(scatter > _ROUNDING * squares, scatter, 0.0).div(self.count).sqrt()


@dataclass
class TapMoments:
    """Moments of one tap: of the patches, and of each prefix token apart, for their means differ.

    start: where among the channels of x the tap's own begin.
    """

    patches: Moments
    prefix: list[Moments]
    start: int = 0

    def __add__(self, other: TapMoments) -> TapMoments:
        pairs = zip(self.prefix, other.prefix, strict=True)
        return TapMoments(self.patches + other.patches, [a + b for a, b in pairs], self.start)

    def __sub__(self, other: TapMoments) -> TapMoments:
        pairs = zip(self.prefix, other.prefix, strict=True)
        return TapMoments(self.patches - other.patches, [a - b for a, b in pairs], self.start)

    def block(self, reads: slice, predicts: slice) -> TapMoments:
        """The moments of some channels of x and some of y; those of y lie among those of x."""
        start = predicts.start - reads.start
        return TapMoments(self.patches.block(reads, predicts), [p.block(reads, predicts) for p in self.prefix], start)

    def to(self, device: torch.device) -> TapMoments:
        """The same moments on a device."""
        return TapMoments(self.patches.to(device), [p.to(device) for p in self.prefix], self.start)

    def own(self, task: str) -> slice:
        """Where the tap's own channels lie among those of x."""
        return slice(self.start, self.start + len(self.patches.y[task]))

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

    def pooled_xx(self) -> Tensor:
        """X'X (D, D) within the groups of tokens, weighted and added."""
        return self._pooled([group.scatter_xx() for group in self.groups])

    def pooled_xy(self, task: str) -> Tensor:
        """X'Y (D, C) within the groups of tokens, weighted and added."""
        return self._pooled([group.scatter_xy(task) for group in self.groups])

    def pooled_yy(self, task: str) -> Tensor:
        """The diagonal of Y'Y (C,) within the groups of tokens, weighted and added."""
        return self._pooled([group.count * group.deviation_y(task).square() for group in self.groups])

    def _pooled(self, parts: list[Tensor]) -> Tensor:
        return reduce(add, (weight * part for weight, part in zip(self.weights, parts, strict=True)))


def add_up_moments(taps: Sequence[TapMoments]) -> None:
    """Replace the moments of this process's images by those of all processes' images, in place."""
    groups = [group for tap in taps for group in tap.groups]
    counts = torch.tensor([group.count for group in groups], dtype=torch.int64)
    sums = [[g.x, g.xx, *g.y.values(), *g.xy.values(), *g.yy.values()] for g in groups]
    add_up([counts, *(tensor for each in sums for tensor in each)])
    for group, count in zip(groups, counts.tolist(), strict=True):
        group.count = count


def tap_moments(
    patches: Tensor,
    prefix: Tensor,
    expert_patches: Mapping[str, Tensor],
    expert_prefix: Mapping[str, Tensor],
    precise: bool = True,
    wider: bool = False,
) -> TapMoments:
    """Moments of a batch at one tap; patches (n, h*w, C), prefix (n, P, C), and the same of each expert.

    precise, wider: as in `Moments.of`.
    """
    found = Moments.of(patches.flatten(0, 1), {t: y.flatten(0, 1) for t, y in expert_patches.items()}, precise, wider)
    tokens = [
        Moments.of(prefix[:, i], {t: y[:, i] for t, y in expert_prefix.items()}, precise, wider)
        for i in range(prefix.shape[1])
    ]
    return TapMoments(found, tokens)


def _about_mean(values: Tensor, precise: bool) -> tuple[Tensor, Tensor]:
    """The values to multiply and what was taken off them, (n, C) and (C,) in float64: nothing in float64."""
    if precise or not len(values):  # nothing has no mean
        return values.double(), values.new_zeros(values.shape[1], dtype=torch.float64)
    mean = values.mean(0, dtype=torch.float64).float()
    return values.float() - mean, mean.double()


def _about_zero(product: Tensor, sum_a: Tensor, sum_b: Tensor, mean_a: Tensor, mean_b: Tensor, count: int) -> Tensor:
    """X'Y of values whose deviations from mean_a and mean_b have this product and these sums."""
    return product + torch.outer(sum_a, mean_b) + torch.outer(mean_a, sum_b + count * mean_b)
