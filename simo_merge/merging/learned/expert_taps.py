"""What an expert's encoder gives for the images that coefficients are learned from, computed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.data.loading import Reader, load
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.merging.method import MergeData
from simo_merge.models import SingleTaskModel, Taps
from simo_merge.progress import progress

_BATCH = 16


class ExpertTaps:
    """The taps of one expert, kept on the CPU.

    Args:
        expert: It is run as a copy, so that neither its device nor its mode changes.
        given: Images, device and precision.
        used: Indices of the images.

    Raises:
        SimoError: images of different sizes, or NaN in the features.
    """

    def __init__(self, expert: SingleTaskModel, given: MergeData, used: Sequence[int]) -> None:
        encoder = copy.deepcopy(expert.encoder).to(given.device).eval()
        plan = [used[i : i + _BATCH] for i in range(0, len(used), _BATCH)]
        chunks: list[Taps] = []
        sizes: set[tuple[int, int]] = set()
        label = f"features: {expert.task.name}"
        with torch.no_grad():
            for batch in progress(load(Reader(given.images), plan), len(plan), label):
                with autocast(given.device, given.precision):
                    taps = encoder(batch.images.to(given.device))
                sizes.add((batch.images.shape[-2], batch.images.shape[-1]))
                if len(sizes) > 1:
                    found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
                    raise SimoError(f"calibration images of different sizes: {found}; read them with one size")
                chunks.append(Taps(tuple(m.cpu() for m in taps.maps), tuple(p.cpu() for p in taps.prefix)))
        (self.image_size,) = sizes
        self.indices = tuple(used)
        self.device = given.device
        self._row = {index: row for row, index in enumerate(used)}
        count = len(encoder.taps)
        self._maps = [torch.cat([c.maps[tap] for c in chunks]) for tap in range(count)]  # (M, C, h, w)
        self._prefix = [torch.cat([c.prefix[tap] for c in chunks]) for tap in range(count)]  # (M, P, C)
        for block, values, prefix in zip(encoder.taps, self._maps, self._prefix, strict=True):
            if not (torch.isfinite(values).all() and torch.isfinite(prefix).all()):
                raise SimoError(
                    f"{label}: what {encoder.name} gives at block {block} holds NaN or infinity; the encoder's weights "
                    "are broken, or the precision is too low: use float32"
                )

    def at(self, indices: Sequence[int]) -> Taps:
        """The taps of these images, on the device, in full precision."""
        rows = torch.tensor([self._row[index] for index in indices])
        return Taps(tuple(self._load(m[rows]) for m in self._maps), tuple(self._load(p[rows]) for p in self._prefix))

    def channel_variances(self) -> list[Tensor]:
        """The variance of every channel over all patches and images, for each tap: (C,), float64."""
        found = []
        for values in self._maps:
            mean = values.mean(dim=(0, 2, 3), dtype=torch.float64).view(-1, 1, 1)
            squares = sum((image.double() - mean).square().mean(dim=(1, 2)) for image in values)  # one image at a time
            found.append(torch.as_tensor(squares) / len(values))
        return found

    def _load(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        return values if values.dtype == torch.float64 else values.float()
