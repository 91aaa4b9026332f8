"""Scores that published code computes batch by batch and then averages."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from simo_merge.metrics.base import Metric


class BatchMean(Metric):
    """Mean over batches of the scores that each batch has by itself, medians included.

    score = Σ_b w_b s_b / Σ_b w_b, with s_b the score of batch b. It depends on the batch size, on the order of
    the images and on which of them share a batch: a protocol that uses it says so in its results.

    A batch without a valid pixel has no score and is left out, numerator and denominator. In the published
    code it is 0/0, and the result NaN from there on.

    Args:
        each: An empty metric; a copy of it counts each batch.
        weight: w_b. "batch" is 1 for every batch (MTAN). "images" is the number of images in it, which is what
            SIMO's running mean amounts to: with k full batches of B images before it, a last batch of b
            images enters with the share 1 − r = (b/B)/(k + b/B).
    """

    def __init__(self, each: Metric, weight: Literal["batch", "images"] = "batch") -> None:
        super().__init__(each.name, type(each), each.settings, weight)
        self.weight = weight
        self._each = copy.deepcopy(each)
        self._scores = tuple(each.compute())
        self.sums["weight"] = torch.zeros((), dtype=torch.int64)
        for score in self._scores:
            self.sums[f"weighted {score}"] = torch.zeros((), dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch; see the metric that counts each.

        Raises:
            SimoError: As that metric.
        """
        batch = copy.deepcopy(self._each)
        batch.update(prediction, target, mask)
        if batch.valid_pixels == 0:
            return
        weight = 1 if self.weight == "batch" else prediction.shape[0]
        scores = torch.tensor(list(batch.compute().values()), dtype=torch.float64)
        self._add(
            pixels=batch.sums["pixels"],
            weight=torch.tensor(weight),
            **{f"weighted {name}": weight * score for name, score in zip(self._scores, scores, strict=True)},
        )

    def compute(self) -> dict[str, float]:
        """Returns the scores of the metric that counts each batch; NaN when no batch had a valid pixel."""
        weight = self.sums["weight"].double()  # 0/0 = NaN
        return {score: float(self.sums[f"weighted {score}"] / weight) for score in self._scores}
