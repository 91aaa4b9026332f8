"""Capture: the features of calibration images at the taps, computed once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simo_merge.data import Batch, DenseDataset
from simo_merge.device import autocast
from simo_merge.distributed import by_main, gather, share, together, world_size
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Encoder, MultiTaskModel, SingleTaskModel, Taps
from simo_merge.realign.on_disk import FeatureFile, OnDisk, refuse_full_disk
from simo_merge.scoring import numbered_batches, own_batches
from simo_merge.weights import fingerprint

_MARKED = 64  # numbers of a weight


@dataclass(frozen=True)
class Features:
    """Features of N images at each tap, on the CPU: in memory, or mapped from a file (`OnDisk`).

    In memory they are float32. Those of a file have its type, and what computes with them turns a few images at a time
    to float32; they cannot be written to.

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
            p[index].float().transpose(1, 2).reshape(len(index), -1, height, width)  # (n, h*w, C) -> (n, C, h, w)
            for p in self.patches
        )
        return Taps(maps, tuple(p[index].float() for p in self.prefix))

    def aligned(self, aligner: Aligner | None, device: torch.device | str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
        """Patches and prefix tokens of every tap behind an aligner, wherever it lies; None leaves them as they are.

        device: where they are put.
        """
        where = torch.device(device)
        if aligner is not None:
            where = next((tensor.device for tensor in aligner.state_dict().values()), where)
        patches, prefix = ([t.to(where).float() for t in tokens] for tokens in (self.patches, self.prefix))
        if aligner is not None:
            with torch.inference_mode():
                patches, prefix = aligner.tokens(patches, prefix, self.grid)
        return [p.to(device) for p in patches], [p.to(device) for p in prefix]


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
    keep: OnDisk | None = None,
) -> Features:
    """Run images through an encoder, once, and keep what the taps give.

    Where a launcher started several processes, all of them make this call, each runs a share of the images, and all
    get the features of all images; with `whole=False` each keeps its share.

    keep: where files hold the features instead of memory. A call that was killed is made again and goes on where it
    was; one that had ended is found, and runs nothing. All processes need the same folder.

    Raises:
        SimoError: no images, images of different sizes, NaN in the features (the tap is named), features that the type
            of the files cannot hold, or a memory or a disk that is too small: that is told before anything runs.
    """
    _refuse_no_images(images)
    if keep is None:
        return _in_memory([(label, encoder)], images, batch_size, precision, label, whole)[0]
    encoder.eval()
    file = _file(encoder, images, batch_size, precision, keep)
    by_main(lambda: refuse_full_disk([file]))
    return _to_disk(encoder, images, file, batch_size, precision, label, whole)


def _refuse_no_images(images: DenseDataset) -> None:
    if len(images) == 0:
        raise SimoError(f"{images.name} ({images.split}) has no calibration images")


def _in_memory(
    encoders: Sequence[tuple[str, Encoder]],
    images: DenseDataset,
    batch_size: int,
    precision: str,
    label: str,
    whole: bool,
) -> list[Features]:
    """What each encoder, given with its label, makes of the images, which are read once for all of them."""
    chunks: list[list[Taps]] = [[] for _ in encoders]
    keys: list[str] = []
    for _, encoder in encoders:
        encoder.eval()

    def own() -> dict[tuple[int, int], str]:
        sizes: dict[tuple[int, int], str] = {}
        for batch in own_batches(images, batch_size, label):
            if not keys:
                _refuse_too_large([encoder for _, encoder in encoders], batch, len(images), whole)
            for (_, encoder), found in zip(encoders, chunks, strict=True):
                found.append(_run(encoder, batch, precision, sizes))
            keys.extend(batch.keys)
        for (name, encoder), found in zip(encoders, chunks, strict=True):
            _refuse_non_finite(encoder, found, name)
        return sizes

    size = one_size(together(own))
    names = tuple(key for some in gather(keys) for key in some) if whole else tuple(keys)
    features = []
    for _, encoder in encoders:
        patches, prefix = _stack(encoder, chunks.pop(0), size)
        if whole:
            patches, prefix = ([torch.cat(gather(tap)) for tap in taps] for taps in (patches, prefix))
        grid = encoder.grid(*size)
        features.append(Features(tuple(patches), tuple(prefix), grid, size, names, whole, mark(encoder)))
    return features


def _refuse_too_large(encoders: Sequence[Encoder], first: Batch, images: int, whole: bool) -> None:
    """Refuse, before anything runs, features that this machine's memory cannot hold.

    Raises:
        SimoError: it says what they need and what there is, in GB (1e9 bytes).
    """
    held = images if whole else -(-images // world_size())
    needed = 0
    for encoder in encoders:
        height, width = encoder.grid(first.images.shape[-2], first.images.shape[-1])
        needed += 4 * held * (height * width + encoder.prefix_tokens) * sum(encoder.tap_channels)
    memory = _memory()
    if memory is not None and needed > memory:
        raise SimoError(
            f"features of {held} images from {len(encoders)} encoder{'s' * (len(encoders) > 1)} take "
            f"{needed / 1e9:.3g} GB of memory, and this machine has {memory / 1e9:.3g} GB; take fewer images, or, for "
            "a re-alignment, keep them in files (keep=OnDisk(DIR), --capture-dir DIR) or keep none (stream)"
        )


def _memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _file(encoder: Encoder, images: DenseDataset, batch_size: int, precision: str, keep: OnDisk) -> FeatureFile:
    return FeatureFile.of(encoder, images, batch_size, precision, keep, lambda size: encoder.grid(*size))


def _to_disk(
    encoder: Encoder,
    images: DenseDataset,
    file: FeatureFile,
    batch_size: int,
    precision: str,
    label: str,
    whole: bool,
) -> Features:
    """Run the batches that the file lacks, and map it."""
    done = by_main(file.opened)

    def own() -> None:
        sizes = {file.size: images.keys[0]}
        with file.writing(done) as writer:
            for number, batch in numbered_batches(images, batch_size, label, done):
                taps = _run(encoder, batch, precision, sizes)
                _refuse_non_finite(encoder, [taps], label)
                writer.add(number, _stored(encoder, taps, file.dtype, label))

    together(own)
    batches = [file.batches[number] for number in (range(len(file.batches)) if whole else share(len(file.batches)))]
    rows = slice(batches[0].start, batches[-1].stop) if batches else slice(0)
    patches, prefix = file.read(rows)
    return Features(patches, prefix, file.grid, file.size, tuple(images.keys[rows]), whole, mark(encoder))


def _stored(encoder: Encoder, taps: Taps, dtype: torch.dtype, label: str) -> list[Tensor]:
    """Patches (n, h*w, C) and prefix tokens (n, P, C) of each tap in turn, in the type of a file."""
    found = []
    for block, tap_map, prefix in zip(encoder.taps, *taps, strict=True):
        for values in (tap_map.flatten(2).transpose(1, 2), prefix):
            found.append(values.to(dtype))
            if not torch.isfinite(found[-1]).all():
                raise SimoError(
                    f"{label}: what {encoder.name} gives at block {block} reaches {float(values.abs().max()):.5g}, and "
                    f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.5g}; keep features as "
                    "bfloat16, which takes the same disk, or float32"
                )
    return found


def mark(encoder: Encoder) -> str:
    """What an encoder is known by: a digest of the first numbers of each of its weights."""
    return fingerprint({name: value.flatten()[:_MARKED] for name, value in encoder.state_dict().items()})


def _run(encoder: Encoder, batch: Batch, precision: str, sizes: dict[tuple[int, int], str]) -> Taps:
    """What the taps give for a batch, in float32 on the CPU; sizes: those seen, each with its first image."""
    device = next(encoder.parameters()).device
    sizes.setdefault((batch.images.shape[-2], batch.images.shape[-1]), batch.keys[0])
    one_size([sizes])
    with torch.inference_mode(), autocast(device, precision):
        taps = encoder(batch.images.to(device))
        return Taps(tuple(m.float().cpu() for m in taps.maps), tuple(p.float().cpu() for p in taps.prefix))


def one_size(found: Sequence[Mapping[tuple[int, int], str]]) -> tuple[int, int]:
    """The one size of all images of all processes."""
    seen = [each for sizes in found for each in sizes.items()]
    first = seen[0][0]
    for size, key in seen:
        if size != first:
            raise SimoError(
                f"calibration images of different sizes: {first} before, {size} at {key}; read them with one size"
            )
    return first


def _stack(encoder: Encoder, chunks: list[Taps], size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Patches (N, h*w, C) and prefix tokens (N, P, C) of each tap; N may be 0, for a process that had no batch."""
    height, width = encoder.grid(*size)
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
    keep: OnDisk | None = None,
    also: Sequence[Encoder] = (),
) -> CalibrationFeatures:
    """Capture from the merged encoder and from every expert: T + 1 encoder passes over the images.

    The images are read once; where files keep the features, once for each encoder.

    whole, keep: as there; the disk must hold the features of all encoders.
    also: encoders that will be captured next, of the same images; the disk must hold theirs too.

    Raises:
        SimoError: as `capture`, or a task without an expert.
    """
    refuse_missing(model, experts)
    encoders = [("features: merged", model.encoder)]
    encoders += [(f"features: {name}", experts[name].encoder) for name in model.tasks]
    _refuse_no_images(images)
    if keep is None:
        merged, *theirs = _in_memory(encoders, images, batch_size, precision, "features", whole)
    else:
        refuse_no_room([*(encoder for _, encoder in encoders), *also], images, keep, batch_size, precision)
        merged, *theirs = (
            capture(encoder, images, batch_size, precision, label, whole, keep) for label, encoder in encoders
        )
    return CalibrationFeatures(merged, dict(zip(model.tasks, theirs, strict=True)))


def refuse_no_room(
    encoders: Sequence[Encoder], images: DenseDataset, keep: OnDisk, batch_size: int = 16, precision: str = "float32"
) -> None:
    """Refuse, before anything runs, captures from these encoders that the disk has no room for.

    Raises:
        DiskError: it says what they need and what is free.
    """
    files = [_file(encoder, images, batch_size, precision, keep) for encoder in encoders]
    by_main(lambda: refuse_full_disk(files))


def refuse_missing(model: MultiTaskModel, experts: Mapping[str, SingleTaskModel]) -> None:
    """Refuse experts that are not those of every task.

    Raises:
        SimoError: it names the tasks without one.
    """
    missing = [name for name in model.tasks if name not in experts]
    if missing:
        raise SimoError(f"no expert for {', '.join(missing)}; re-alignment needs the expert of every task")
