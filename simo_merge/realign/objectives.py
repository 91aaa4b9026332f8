"""What aligners fitted by gradient descent minimise, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simo_merge.data import DenseDataset, collate
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, SingleTaskModel, Taps
from simo_merge.realign.features import Features
from simo_merge.tasks.agreement import prediction_distance

COSINE, SMOOTH_L1 = 0.9, 0.1
"""Shares of the two parts of `cosine_smooth_l1`."""


@dataclass(frozen=True)
class Fitted:
    """One task's features and frozen decoder: all that an objective may ask of some images.

    head: the merged encoder's geometry, the task's decoder and the task. scales: the unit of errors at each tap, (C,).
    images: calibration images, for their labels.
    """

    head: SingleTaskModel
    merged: Features
    expert: Features
    scales: Sequence[Tensor]
    images: DenseDataset
    device: torch.device

    def aligned(self, aligner: Aligner, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Aligned patches (n, h*w, C) and prefix tokens (n, P, C) of every tap."""
        return aligner.tokens(*self._tokens(self.merged, index), self.merged.grid)

    def wanted(self, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The expert's, of the same shapes."""
        return self._tokens(self.expert, index)

    def predicted(self, patches: Sequence[Tensor], prefix: Sequence[Tensor]) -> Tensor:
        """The decoder's prediction (n, K, H, W) from these tokens."""
        maps = tuple(p.transpose(1, 2).unflatten(2, self.merged.grid) for p in patches)  # type: ignore[no-untyped-call]
        return self.head.decode(Taps(maps, tuple(prefix)), self.merged.image_size)

    def labels(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and masks of the images."""
        name = self.head.task.name
        batch = collate([self.images[int(i)] for i in index]).to(self.device)
        return batch.targets[name], batch.masks[name]

    def _tokens(self, features: Features, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        patches, prefix = (
            [part[index].to(self.device, torch.float32) for part in parts]
            for parts in (features.patches, features.prefix)
        )
        return patches, prefix


def feature_l1(given: Fitted, aligner: Aligner, index: Tensor) -> Tensor:
    """Mean over taps of the mean absolute difference over all tokens and channels: |x - y|.

    Source: arXiv 2402.02705, equation 5; per token instead of per image.
    """
    parts = []
    for x, z, y, w in _taps(given, aligner, index):
        parts.append(((x - y).abs().sum() + (z - w).abs().sum()) / (x.numel() + z.numel()))
    return torch.stack(parts).mean()


def feature_l2(given: Fitted, aligner: Aligner, index: Tensor) -> Tensor:
    """Mean over taps of ((x - y) / s)^2, s the expert's deviations: the objective of the closed form, without a ridge.

    As there a prefix token counts for as much as all patches of its image.
    """
    return _over_tokens(given, aligner, index, lambda x, y: (x - y).square().mean(-1))


def cosine_smooth_l1(given: Fitted, aligner: Aligner, index: Tensor) -> Tensor:
    """Mean over taps and tokens of 0.9 (1 - cos(x, y)) + 0.1 smooth_l1(x, y), both divided by the expert's deviations.

    A prefix token counts for as much as all patches of its image.

    Source: AM-RADIO, arXiv 2312.06709, section 3.3, which distils patch features so; it does not scale channels.
    """

    def distance(x: Tensor, y: Tensor) -> Tensor:
        smooth = F.smooth_l1_loss(x, y, reduction="none").mean(-1)
        return COSINE * (1 - F.cosine_similarity(x, y, dim=-1)) + SMOOTH_L1 * smooth

    return _over_tokens(given, aligner, index, distance)


def predictions(given: Fitted, aligner: Aligner, index: Tensor) -> Tensor:
    """Distance of the decoder's prediction from aligned features to that from the expert's: `prediction_distance`."""
    with torch.no_grad():
        wanted = given.predicted(*given.wanted(index))
    return prediction_distance(given.head.task, given.predicted(*given.aligned(aligner, index)), wanted)


def supervised(given: Fitted, aligner: Aligner, index: Tensor) -> Tensor:
    """The task's own loss on labels."""
    target, mask = given.labels(index)
    return given.head.task.loss(given.predicted(*given.aligned(aligner, index)), target, mask)


def _taps(given: Fitted, aligner: Aligner, index: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each tap aligned patches and prefix tokens, and the expert's."""
    return list(zip(*given.aligned(aligner, index), *given.wanted(index), strict=True))


def _over_tokens(
    given: Fitted, aligner: Aligner, index: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Mean over taps and over groups of tokens: the patches, and each prefix token."""
    parts = []
    for (x, z, y, w), scale in zip(_taps(given, aligner, index), given.scales, strict=True):
        patches, prefix = distance(x / scale, y / scale).mean(), distance(z / scale, w / scale).mean(0)
        parts.append(torch.cat([patches[None], prefix]).mean())
    return torch.stack(parts).mean()


Objective = Callable[[Fitted, Aligner, Tensor], Tensor]
"""Fitted, aligner, which images (n,) -> the loss, a scalar."""

ALIGNER_OBJECTIVES: dict[str, Objective] = {
    "feature-l1": feature_l1,
    "feature-l2": feature_l2,
    "cosine-smooth-l1": cosine_smooth_l1,
    "predictions": predictions,
    "supervised": supervised,
}
NEED_LABELS = ("supervised",)


def aligner_objective(name: str) -> Objective:
    """The objective of this name.

    Raises:
        SimoError: an unknown name; the known ones are listed.
    """
    if name not in ALIGNER_OBJECTIVES:
        raise SimoError(f"unknown objective {name!r}; known: {', '.join(ALIGNER_OBJECTIVES)}")
    return ALIGNER_OBJECTIVES[name]
