"""Published surgery as a loop over images, and what it is raced against: models, features, the held-out error."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.data import DenseDataset, collate
from simo_merge.device import autocast
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import Aligner
from simo_merge.realign import CalibrationFeatures, Features, LinearSurgery, capture_all

Row = dict[str, Any]
Tokens = list[tuple[Tensor, Tensor]]  # of every tap: patches (B, h*w, C), prefix tokens (B, P, C)


class World:
    """Models, method and how they are run.

    rank: of all aligners. batch_size: images at a time, in every contestant. every: steps between two looks at the
    held-out error.
    """

    def __init__(
        self,
        merged: MultiTaskModel,
        experts: Sequence[SingleTaskModel],
        rank: int,
        device: torch.device,
        precision: str = "float32",
        batch_size: int = 16,
        every: int = 10,
    ) -> None:
        self.merged, self.experts = merged, {expert.task.name: expert for expert in experts}
        self.rank, self.method = rank, LinearSurgery(rank=rank, stretch="none")
        self.device, self.precision, self.batch_size, self.every = device, precision, batch_size, every
        self.grid = (0, 0)  # of patches; known as soon as an image was seen
        for model in (merged, *experts):
            model.to(device).eval()

    def batches(self, images: DenseDataset) -> Iterator[Tensor]:
        for start in range(0, len(images), self.batch_size):
            yield collate([images[i] for i in range(start, min(start + self.batch_size, len(images)))]).images

    def features(self, images: DenseDataset) -> CalibrationFeatures:
        found = capture_all(self.merged, self.experts, images, self.batch_size, self.precision)
        self.grid = found.merged.grid
        return found


def loop(world: World, seen: Source, held_out: CalibrationFeatures, lr: float, target: float, cap: float) -> Row:
    """Published surgery until its held-out error is at most the target, or `cap` seconds are spent.

    Each step draws a batch, reads the features of it from `seen`, and makes one step of Adam for every task and tap.
    """
    torch.manual_seed(0)
    encoder = world.merged.encoder
    aligners = nn.ModuleDict(
        {
            task: Aligner("surgery", encoder.tap_channels, encoder.prefix_tokens, rank=world.rank)
            for task in world.experts
        }
    ).to(world.device)
    optimizer = torch.optim.Adam(aligners.parameters(), lr=lr)
    spent, step, curve, reached = seen.seconds, 0, [], None
    order: list[int] = []
    generator = torch.Generator().manual_seed(0)
    while spent < cap and reached is None:
        with clocked(world.device) as seconds:
            for _ in range(world.every):
                while len(order) < world.batch_size:
                    order += torch.randperm(seen.count, generator=generator).tolist()
                chunk, order = order[: world.batch_size], order[world.batch_size :]
                merged, experts = seen.read(chunk)
                loss = torch.stack(
                    [
                        mean_distance(found, wanted)
                        for task, aligner in aligners.items()
                        for found, wanted in zip(corrected(aligner, merged, world.grid), experts[task], strict=True)
                    ]
                ).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        spent, step = spent + seconds(), step + world.every
        error = error_left(held_out, dict(aligners.items()))
        curve.append([step, round(spent, 4), round(error, 5)])
        reached = spent if error <= target else None
    best = min(curve, key=lambda point: point[2]) if curve else [0, spent, 1.0]
    return {
        "lr": lr, "steps": step, "seconds": spent, "error": curve[-1][2] if curve else 1.0, "best_error": best[2],
        "reached_s": reached, "seconds_a_step": (spent - seen.seconds) / max(step, 1), "curve": curve,
    }  # fmt: skip


def corrected(aligner: nn.Module, merged: Tokens, grid: tuple[int, int]) -> Tokens:
    patches, prefix = aligner.tokens([p for p, _ in merged], [z for _, z in merged], grid)  # type: ignore[operator]
    return list(zip(patches, prefix, strict=True))


def mean_distance(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute difference over all tokens of a tap, patches and prefix."""
    total = sum((a - b).abs().sum() for a, b in zip(found, wanted, strict=True))
    return torch.as_tensor(total) / sum(part.numel() for part in wanted)


class Source:
    """Features of the fitted images, a batch at a time.

    count: images. seconds: what was spent before the first step. read: indices -> merged features, and each expert's.
    """

    def __init__(
        self, count: int, seconds: float, read: Callable[[list[int]], tuple[Tokens, dict[str, Tokens]]]
    ) -> None:
        self.count, self.seconds, self.read = count, seconds, read


def forwarded(world: World, images: DenseDataset) -> Source:
    """Every batch goes through all encoders, as published; images are decoded once."""
    with clocked(world.device) as seconds:
        pixels = torch.cat(list(world.batches(images)))

    def read(chunk: list[int]) -> tuple[Tokens, dict[str, Tokens]]:
        batch = pixels[chunk].to(world.device)
        with torch.no_grad(), autocast(world.device, world.precision):
            return tokens(world.merged.encoder, batch), {t: tokens(e.encoder, batch) for t, e in world.experts.items()}

    return Source(len(images), seconds(), read)


def remembered(world: World, images: DenseDataset) -> Source:
    """Every encoder runs once over the images; batches are read from its features."""
    with clocked(world.device) as seconds:
        features = world.features(images)

    def of(found: Features, chunk: list[int]) -> Tokens:
        pairs = zip(found.patches, found.prefix, strict=True)
        return [(p[chunk].to(world.device), z[chunk].to(world.device)) for p, z in pairs]

    def read(chunk: list[int]) -> tuple[Tokens, dict[str, Tokens]]:
        return of(features.merged, chunk), {task: of(found, chunk) for task, found in features.experts.items()}

    return Source(len(images), seconds(), read)


def tokens(encoder: Encoder, batch: Tensor) -> Tokens:
    taps = encoder(batch)
    return [
        (m.float().flatten(2).transpose(1, 2), p.float()) for m, p in zip(taps.maps, taps.prefix, strict=True)
    ]  # (B, C, h, w) -> (B, h*w, C)


def error_left(features: CalibrationFeatures, aligners: Mapping[str, nn.Module], chunk: int = 32) -> float:
    """L1 distance to the experts' features over what it is without aligners; mean over tasks and taps of 0 to 1."""
    shares = []
    for task, expert in features.experts.items():
        aligner = aligners[task].eval()
        device = next(aligner.parameters(), expert.patches[0]).device
        taps = len(expert.patches)
        before, after = [0.0] * taps, [0.0] * taps
        for start in range(0, len(expert), chunk):
            x, y = (f.subset(slice(start, start + chunk)) for f in (features.merged, expert))
            merged = [(p.to(device), z.to(device)) for p, z in zip(x.patches, x.prefix, strict=True)]
            with torch.no_grad():
                found = corrected(aligner, merged, x.grid)
            for tap in range(taps):
                wanted = (y.patches[tap].to(device), y.prefix[tap].to(device))
                before[tap] += sum(float((a - b).abs().sum()) for a, b in zip(merged[tap], wanted, strict=True))
                after[tap] += sum(float((a - b).abs().sum()) for a, b in zip(found[tap], wanted, strict=True))
        shares += [a / b if b else 1.0 for a, b in zip(after, before, strict=True)]
    return statistics.fmean(shares)


@contextmanager
def clocked(device: torch.device) -> Iterator[Callable[[], float]]:
    """Seconds of the block, what a GPU has still to do included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    taken = [0.0]
    began = time.perf_counter()
    try:
        yield lambda: taken[0]
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken[0] = time.perf_counter() - began
