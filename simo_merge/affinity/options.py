"""What can be set about affinity measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simo_merge.affinity.sweep import LAMBDAS
from simo_merge.errors import SimoError
from simo_merge.merging import DataMergeMethod, MergeMethod, TaskSpecificMethod, WeightAverage


@dataclass(frozen=True)
class AffinityOptions:
    """Options of all measures; the defaults suit a ViT-S and 200 images on two cores.

    rank: singular directions of a matrix that subspaces are compared by (half of all, where there are fewer).
    tokens: patches of an image that feature measures look at; the rest only count in the image's mean.
    folds: runs of images, each predicted by what the others give.
    merge: how each pair is merged for `merged-features` and `realigned-features`.
    pair_images: images that each merged pair sees, spread evenly over all; None: all of them.
    decoded_images: images that every decoder is asked about on every encoder; spread evenly, or None, likewise.
    surgery_rank, ridge: of closed-form surgery after the merge; `ridge` is also that of the other linear maps.
    lambdas: of the sweep. step: length of a gradient step, as a part of the mean length of the task vectors.
    gradient_batches: labelled batches that gradients are taken on, at most.
    batch_size: images at a time.

    Raises:
        SimoError: a number out of range, or a merge that gives every task an encoder of its own or learns from labels.
    """

    rank: int = 16
    tokens: int = 64
    folds: int = 3
    merge: MergeMethod = field(default_factory=WeightAverage)
    pair_images: int | None = 100
    decoded_images: int | None = 50
    surgery_rank: int = 64
    ridge: float = 0.01
    lambdas: tuple[float, ...] = LAMBDAS
    step: float = 0.01
    gradient_batches: int = 8
    batch_size: int = 16

    def __post_init__(self) -> None:
        counts = {"rank": 1, "tokens": 1, "folds": 2, "surgery_rank": 1, "gradient_batches": 1, "batch_size": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise SimoError(f"affinity: {name} must be {least} or more, got {getattr(self, name)}")
        if self.pair_images is not None and self.pair_images < 2:
            raise SimoError(f"affinity: pair_images must be 2 or more (some are held out), got {self.pair_images}")
        if self.decoded_images is not None and self.decoded_images < 1:
            raise SimoError(f"affinity: decoded_images must be 1 or more, got {self.decoded_images}")
        for name in ("ridge", "step"):
            if not 0 < getattr(self, name) < math.inf:
                raise SimoError(f"affinity: {name} must be positive, got {getattr(self, name)}")
        if isinstance(self.merge, TaskSpecificMethod):
            raise SimoError(
                f"affinity: {self.merge.name} gives every task an encoder of its own, so a pair shares no "
                "features; choose a merge with one encoder"
            )
        if isinstance(self.merge, DataMergeMethod) and self.merge.needs_labels:
            raise SimoError(
                f"affinity: {self.merge.name} with these options learns from labels, and features are measured without "
                "any; choose a merge that needs none"
            )
