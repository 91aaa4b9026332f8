"""Cross-task agreement: what one expert's encoder is worth to another expert's decoder, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.device import autocast
from simo_merge.models import SingleTaskModel
from simo_merge.realign import Features
from simo_merge.tasks.agreement import prediction_distance


class CrossAgreement:
    """Distances between what a decoder predicts from its own encoder and from others, added up over images.

    heads: the experts whose decoders are asked, on the device where they decode. precision: of their passes.
    """

    def __init__(self, heads: Sequence[SingleTaskModel], batch_size: int, precision: str) -> None:
        self._heads = heads
        self._batch, self._precision = batch_size, precision
        count = len(heads)
        self._apart = torch.zeros(count, count, dtype=torch.float64)  # [encoder, decoder]
        self._base = torch.zeros(count, dtype=torch.float64)

    def add(self, base: Features, experts: Mapping[str, Features]) -> None:
        """Take up some images, as the base and the experts' encoders see them."""
        tasks = [head.task.name for head in self._heads]
        for start in range(0, len(base), self._batch):
            index = torch.arange(start, min(start + self._batch, len(base)))
            for t, head in enumerate(self._heads):
                own = self._predict(head, experts[tasks[t]], index)
                for s, source in enumerate(tasks):
                    other = own if s == t else self._predict(head, experts[source], index)
                    self._apart[s, t] += len(index) * float(prediction_distance(head.task, other, own))
                from_base = self._predict(head, base, index)
                self._base[t] += len(index) * float(prediction_distance(head.task, from_base, own))

    def values(self) -> Tensor:
        """(T, T); [s, t] is 1 - d(encoder s, decoder t) / d(base encoder, decoder t), d the mean `prediction_distance`.

        1 where encoder s serves decoder t as its own does, 0 where it serves it as the base does, below 0 where worse;
        NaN where the base's encoder serves decoder t as well as its own. Distances of tasks have units of their own,
        so the base is what they are measured by.

        Source: cross-task performance in SyMerge, arXiv 2412.19098, here against the expert's prediction, not labels.
        """
        return 1 - self._apart / torch.where(self._base > 0, self._base, torch.nan)

    def _predict(self, head: SingleTaskModel, features: Features, index: Tensor) -> Tensor:
        device = next(head.decoder.parameters()).device
        taps = features.taps(index)
        moved = type(taps)(tuple(m.to(device) for m in taps.maps), tuple(p.to(device) for p in taps.prefix))
        with torch.inference_mode(), autocast(device, self._precision):
            predicted: Tensor = head.decode(moved, features.image_size)
        return predicted.float()
