"""Capture: the features of calibration images at the taps, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simo_merge.data import Batch, DenseDataset
from simo_merge.device import autocast
from simo_merge.distributed import gather, together
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Encoder, MultiTaskModel, SingleTaskModel, Taps
from simo_merge.scoring import own_batches
from simo_merge.weights import fingerprint

_MARKED = 64  # numbers of a weight


@dataclass(frozen=True)
class Features:
    """Features of N images at each tap, on the CPU.

    patches: one (N, h*w, C) tensor a tap. prefix: one (N, P, C) tensor a tap. grid: (h, w).
    image_size: (H, W) of the images. keys: their names.
    whole: whether these are all images, and not one process's share of them.
    encoder: `mark` of the encoder that gave them; empty where that is not known.
    """

    patches: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]
    grid: tuple[int, int]
    image_size: tuple[int, int]
    keys: tuple[str, ...]
    whole: bool = True
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, index: slice | Tensor) -> Features:
        """The features of some of the images."""
        chosen = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        return replace(
            self,
            patches=tuple(p[index] for p in self.patches),
            prefix=tuple(p[index] for p in self.prefix),
            keys=tuple(self.keys[i] for i in chosen),
        )

    def taps(self, index: Tensor) -> Taps:
        """The features of some images as a decoder or an aligner reads them."""
        height, width = self.grid
        maps = tuple(
            p[index].transpose(1, 2).reshape(len(index), -1, height, width)  # (n, h*w, C) -> (n, C, h, w)
            for p in self.patches
        )
        return Taps(maps, tuple(p[index] for p in self.prefix))

    def aligned(self, aligner: Aligner | None) -> tuple[list[Tensor], list[Tensor]]:
        """Patches and prefix tokens of every tap behind an aligner, wherever it lies; None leaves them as they are."""
        patches, prefix = list(self.patches), list(self.prefix)
        if aligner is None:
            return patches, prefix
        device = next((tensor.device for tensor in aligner.state_dict().values()), torch.device("cpu"))
        with torch.inference_mode():
            patches, prefix = aligner.tokens([p.to(device) for p in patches], [p.to(device) for p in prefix], self.grid)
        return [p.cpu() for p in patches], [p.cpu() for p in prefix]


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


def check_same_images(merged: Features, expert: Features) -> None:
    """Refuse features that cannot be compared one by one.

    Raises:
        SimoError: no image, or features of other images.
    """
    if len(expert) == 0 or merged.keys != expert.keys:
        raise SimoError(
            f"features of {len(merged)} merged and {len(expert)} expert images were given; both must be of the same "
            "images, and of one or more"
        )


def refuse_share(features: CalibrationFeatures) -> None:
    """Refuse one process's share of the images where all are needed.

    Raises:
        SimoError: a share.
    """
    if not features.merged.whole:
        raise SimoError("these are the features of one process's share of the images; capture them whole")


def capture(
    encoder: Encoder,
    images: DenseDataset,
    batch_size: int = 16,
    precision: str = "float32",
    label: str = "features",
    whole: bool = True,
) -> Features:
    """Run images through an encoder, once, and keep what the taps give.

    Where a launcher started several processes, all of them make this call, each runs a share of the images, and all
    get the features of all images; with `whole=False` each keeps its share.

    Raises:
        SimoError: no images, images of different sizes, or NaN in the features (the tap is named).
    """
    if len(images) == 0:
        raise SimoError(f"{images.name} ({images.split}) has no calibration images")
    encoder.eval()
    chunks: list[Taps] = []
    keys: list[str] = []

    def own() -> dict[tuple[int, int], str]:
        sizes = _run(encoder, own_batches(images, batch_size, label), precision, chunks, keys)
        _refuse_non_finite(encoder, chunks, label)
        return sizes

    size = _one_size(together(own))
    patches, prefix = _stack(encoder, chunks, size)
    if whole:
        patches, prefix = ([torch.cat(gather(tap)) for tap in taps] for taps in (patches, prefix))
        keys = [key for some in gather(keys) for key in some]
    return Features(tuple(patches), tuple(prefix), _grid(encoder, size), size, tuple(keys), whole, mark(encoder))


def mark(encoder: Encoder) -> str:
    """What an encoder is known by: a digest of the first numbers of each of its weights."""
    return fingerprint({name: value.flatten()[:_MARKED] for name, value in encoder.state_dict().items()})


def _run(
    encoder: Encoder, batches: Iterator[Batch], precision: str, chunks: list[Taps], keys: list[str]
) -> dict[tuple[int, int], str]:
    """Run the batches, add to `chunks` and `keys`; the sizes that were seen, each with the first image of it."""
    device = next(encoder.parameters()).device
    sizes: dict[tuple[int, int], str] = {}
    with torch.inference_mode():
        for batch in batches:
            sizes.setdefault((batch.images.shape[-2], batch.images.shape[-1]), batch.keys[0])
            _one_size([sizes])
            with autocast(device, precision):
                taps = encoder(batch.images.to(device))
            chunks.append(Taps(tuple(m.float().cpu() for m in taps.maps), tuple(p.float().cpu() for p in taps.prefix)))
            keys.extend(batch.keys)
    return sizes


def _one_size(found: Sequence[Mapping[tuple[int, int], str]]) -> tuple[int, int]:
    """The one size of all images of all processes."""
    seen = [each for sizes in found for each in sizes.items()]
    first = seen[0][0]
    for size, key in seen:
        if size != first:
            raise SimoError(
                f"calibration images of different sizes: {first} before, {size} at {key}; read them with one size"
            )
    return first


def _grid(encoder: Encoder, size: tuple[int, int]) -> tuple[int, int]:
    (height, width), (patch_height, patch_width) = encoder.padded_size(*size), encoder.patch_size
    return height // patch_height, width // patch_width


def _stack(encoder: Encoder, chunks: list[Taps], size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Patches (N, h*w, C) and prefix tokens (N, P, C) of each tap; N may be 0, for a process that had no batch."""
    height, width = _grid(encoder, size)
    patches, prefix = [], []
    for tap, channels in enumerate(encoder.tap_channels):
        maps = [c.maps[tap].flatten(2).transpose(1, 2) for c in chunks]  # -> (n, h*w, C)
        patches.append(torch.cat(maps or [torch.zeros(0, height * width, channels)]))
        prefix.append(torch.cat([c.prefix[tap] for c in chunks] or [torch.zeros(0, encoder.prefix_tokens, channels)]))
    return patches, prefix


def _refuse_non_finite(encoder: Encoder, chunks: list[Taps], label: str) -> None:
    for tap, block in enumerate(encoder.taps):
        if not all(torch.isfinite(c.maps[tap]).all() and torch.isfinite(c.prefix[tap]).all() for c in chunks):
            raise SimoError(
                f"{label}: what {encoder.name} gives at block {block} holds NaN or infinity; the encoder's weights "
                "are broken, or the precision is too low: use float32"
            )


def capture_all(
    model: MultiTaskModel,
    experts: Mapping[str, SingleTaskModel],
    images: DenseDataset,
    batch_size: int = 16,
    precision: str = "float32",
    whole: bool = True,
) -> CalibrationFeatures:
    """Capture from the merged encoder and from every expert: T + 1 encoder passes over the images; `whole` as there.

    Raises:
        SimoError: as `capture`, or a task without an expert.
    """
    missing = [name for name in model.tasks if name not in experts]
    if missing:
        raise SimoError(f"no expert for {', '.join(missing)}; re-alignment needs the expert of every task")
    return CalibrationFeatures(
        merged=capture(model.encoder, images, batch_size, precision, "features: merged", whole),
        experts={
            name: capture(experts[name].encoder, images, batch_size, precision, f"features: {name}", whole)
            for name in model.tasks
        },
    )
