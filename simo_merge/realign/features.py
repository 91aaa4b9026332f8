"""Capture: the features of calibration images at the taps, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel, Taps
from simo_merge.progress import progress
from simo_merge.scoring import batches


@dataclass(frozen=True)
class Features:
    """Features of N images at each tap, on the CPU.

    patches: one (N, h*w, C) tensor a tap. prefix: one (N, P, C) tensor a tap. grid: (h, w).
    image_size: (H, W) of the images. keys: their names.
    """

    patches: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]
    grid: tuple[int, int]
    image_size: tuple[int, int]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, index: slice) -> Features:
        """The features of some of the images."""
        return Features(
            tuple(p[index] for p in self.patches),
            tuple(p[index] for p in self.prefix),
            self.grid,
            self.image_size,
            self.keys[index],
        )

    def taps(self, index: Tensor) -> Taps:
        """The features of some images as a decoder or an aligner reads them."""
        height, width = self.grid
        maps = tuple(
            p[index].transpose(1, 2).reshape(len(index), -1, height, width)  # (n, h*w, C) -> (n, C, h, w)
            for p in self.patches
        )
        return Taps(maps, tuple(p[index] for p in self.prefix))


@dataclass(frozen=True)
class CalibrationFeatures:
    """Features of the same images from the merged encoder and from each expert."""

    merged: Features
    experts: Mapping[str, Features]

    def subset(self, index: slice) -> CalibrationFeatures:
        """The features of some of the images."""
        return CalibrationFeatures(
            self.merged.subset(index), {task: f.subset(index) for task, f in self.experts.items()}
        )


def capture(
    encoder: Encoder,
    images: DenseDataset,
    batch_size: int = 16,
    precision: str = "float32",
    label: str = "features",
) -> Features:
    """Run images through an encoder, once, and keep what the taps give.

    Raises:
        SimoError: no images, images of different sizes, or NaN in the features (the tap is named).
    """
    if len(images) == 0:
        raise SimoError(f"{images.name} ({images.split}) has no calibration images")
    device = next(encoder.parameters()).device
    encoder.eval()
    chunks: list[Taps] = []
    keys: list[str] = []
    size: tuple[int, int] | None = None
    with torch.inference_mode():
        for batch in progress(batches(images, batch_size), -(-len(images) // batch_size), label):
            found = (batch.images.shape[-2], batch.images.shape[-1])
            if size not in (None, found):
                raise SimoError(
                    f"calibration images of different sizes: {size} before, {found} at {batch.keys[0]}; read them "
                    "with one size"
                )
            size = found
            with autocast(device, precision):
                taps = encoder(batch.images.to(device))
            chunks.append(Taps(tuple(m.float().cpu() for m in taps.maps), tuple(p.float().cpu() for p in taps.prefix)))
            keys.extend(batch.keys)
    assert size is not None
    return _stack(encoder, chunks, size, tuple(keys), label)


def _stack(encoder: Encoder, chunks: list[Taps], size: tuple[int, int], keys: tuple[str, ...], label: str) -> Features:
    patches, prefix = [], []
    for tap, block in enumerate(encoder.taps):
        patches.append(torch.cat([c.maps[tap].flatten(2).transpose(1, 2) for c in chunks]))  # -> (N, h*w, C)
        prefix.append(torch.cat([c.prefix[tap] for c in chunks]))
        if not (torch.isfinite(patches[-1]).all() and torch.isfinite(prefix[-1]).all()):
            raise SimoError(
                f"{label}: what {encoder.name} gives at block {block} holds NaN or infinity; the encoder's weights "
                "are broken, or the precision is too low: use float32"
            )
    height, width = chunks[0].maps[0].shape[-2:]
    return Features(tuple(patches), tuple(prefix), (height, width), size, keys)


def capture_all(
    model: MultiTaskModel,
    experts: Mapping[str, SingleTaskModel],
    images: DenseDataset,
    batch_size: int = 16,
    precision: str = "float32",
) -> CalibrationFeatures:
    """Capture from the merged encoder and from every expert: T + 1 encoder passes over the images.

    Raises:
        SimoError: as `capture`, or a task without an expert.
    """
    missing = [name for name in model.tasks if name not in experts]
    if missing:
        raise SimoError(f"no expert for {', '.join(missing)}; re-alignment needs the expert of every task")
    return CalibrationFeatures(
        merged=capture(model.encoder, images, batch_size, precision, "features: merged"),
        experts={
            name: capture(experts[name].encoder, images, batch_size, precision, f"features: {name}")
            for name in model.tasks
        },
    )
