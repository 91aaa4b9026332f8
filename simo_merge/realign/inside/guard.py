"""Whether a changed block brings the taps behind it nearer to the experts, on images that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.models.blocks import run_block
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.features import CalibrationFeatures, Features
from simo_merge.realign.inside.streams import Stream


@dataclass(frozen=True)
class Guard:
    """Held-out images on their way through the calibrated encoder, and the experts' features there.

    stream: of the held-out images. experts: their features. scales: for each task and tap, how large an error in each
    channel is taken to be, (C,). taps: blocks of the taps. weights: of the tasks, 1 in sum. prefix_weight: how many
    patches a prefix token counts for.
    """

    stream: Stream
    experts: Mapping[str, Features]
    scales: Mapping[str, list[Tensor]]
    taps: tuple[int, ...]
    weights: Mapping[str, float]
    prefix_weight: float

    @classmethod
    def of(
        cls,
        stream: Stream,
        features: CalibrationFeatures,
        first: int,
        taps: tuple[int, ...],
        weights: Mapping[str, float],
        prefix_weight: float,
    ) -> Guard:
        """A guard whose held-out images are those from `first` on; errors are in units of the experts' deviations."""
        held_out = features.subset(slice(first, None)).experts
        scales = {
            task: [error_scale(p.flatten(0, 1).double().std(dim=0, correction=0)).float() for p in expert.patches]
            for task, expert in held_out.items()
        }
        return cls(stream, held_out, scales, taps, weights, prefix_weight)

    def errors(self, index: int) -> list[float]:
        """Error at each tap from block `index` on, before which the stream lies.

        Mean over tokens and channels of squared differences in units of each expert's deviation, weighted over tasks.
        """
        behind = [tap for tap in self.taps if tap >= index]
        totals, image, stream = dict.fromkeys(behind, 0.0), 0, self.stream
        for part, beside in zip(stream.tokens, stream.beside, strict=True):
            tokens, rows = part.to(stream.device), slice(image, image + len(part))
            with torch.no_grad():
                for block in range(index, len(stream.blocks)):
                    tokens = run_block(stream.blocks[block], tokens, beside[block])
                    if block in totals:
                        totals[block] += self._at(tokens.float().cpu(), self.taps.index(block), rows)
            image = rows.stop
        return [total / image for total in totals.values()]

    def _at(self, tokens: Tensor, tap: int, rows: slice) -> float:
        error = 0.0
        for task, weight in self.weights.items():
            patches, prefix = self.experts[task].patches[tap][rows], self.experts[task].prefix[tap][rows]
            count, scale = prefix.shape[1], self.scales[task][tap]
            of_patches = ((tokens[:, count:] - patches) / scale).double().square().mean(dim=2).sum()
            of_prefix = ((tokens[:, :count] - prefix) / scale).double().square().mean(dim=2).sum()
            mass = patches.shape[1] + self.prefix_weight * count
            error += weight * float(of_patches + self.prefix_weight * of_prefix) / mass
        return error
