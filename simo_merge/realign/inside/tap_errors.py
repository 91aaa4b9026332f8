"""How far an encoder whose blocks are being changed is from the experts at its taps, on some of the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.realign.closed_form import error_scales
from simo_merge.realign.features import CalibrationFeatures, Features
from simo_merge.realign.inside.streams import Stream


@dataclass(frozen=True)
class TapErrors:
    """Images on their way through the encoder, and the experts' features of them.

    stream: of the images. experts: their features. scales: for each task and tap, how large an error in each channel
    is taken to be, (C,). taps: blocks of the taps. weights: of the tasks, 1 in sum. prefix_weight: how many patches a
    prefix token counts for.
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
        taps: tuple[int, ...],
        weights: Mapping[str, float],
        prefix_weight: float,
    ) -> TapErrors:
        """Errors in units of the experts' deviations; stream and features are of the same images."""
        scales = {task: error_scales(expert) for task, expert in features.experts.items()}
        return cls(stream, features.experts, scales, taps, weights, prefix_weight)

    def errors(self, index: int) -> list[float]:
        """Error at each tap from block `index` on, before which the stream lies.

        Mean over tokens and channels of squared differences in units of each expert's deviation, weighted over tasks.
        """
        totals = [0.0] * sum(tap >= index for tap in self.taps)
        with torch.no_grad():
            for part in range(len(self.stream.tokens)):
                found = self.batch(part, index)
                totals = [total + float(error) for total, error in zip(totals, found, strict=True)]
        images = sum(len(tokens) for tokens in self.stream.tokens)
        return [total / images for total in totals]

    def batch(self, part: int, index: int) -> list[Tensor]:
        """The same of one batch, summed over its images and with gradients."""
        stream = self.stream
        first = sum(len(tokens) for tokens in stream.tokens[:part])
        rows = slice(first, first + len(stream.tokens[part]))
        tokens, found = stream.tokens[part].to(stream.device), []
        for block in range(index, len(stream.blocks)):
            tokens = stream.run_block(block, part, tokens)
            if block in self.taps:
                found.append(self._at(tokens.float(), self.taps.index(block), rows))
        return found

    def _at(self, tokens: Tensor, tap: int, rows: slice) -> Tensor:
        error = tokens.new_zeros(())
        for task, weight in self.weights.items():
            expert, scale = self.experts[task], self.scales[task][tap].to(tokens)
            patches, prefix = expert.patches[tap][rows].to(tokens), expert.prefix[tap][rows].to(tokens)
            error = error + weight * token_error(tokens, patches, prefix, scale, self.prefix_weight)
        return error


def token_error(tokens: Tensor, patches: Tensor, prefix: Tensor, scale: Tensor, prefix_weight: float) -> Tensor:
    """Mean over tokens and channels of squared differences in units of `scale` (C,), summed over images.

    Args:
        tokens: (B, P + N, C), prefix tokens first. patches, prefix: what they are compared with, (B, N, C), (B, P, C).
        prefix_weight: how many patches a prefix token counts for.
    """
    count = prefix.shape[1]
    of_patches = ((tokens[:, count:] - patches) / scale).square().mean(dim=2).sum()
    of_prefix = ((tokens[:, :count] - prefix) / scale).square().mean(dim=2).sum()
    return (of_patches + prefix_weight * of_prefix) / (patches.shape[1] + prefix_weight * count)
