"""What encoders make of unlabelled images, captured once for all measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.data import DenseDataset, Sample
from simo_merge.models import Encoder
from simo_merge.realign import Features, capture
from simo_merge.tasks import Task

CHUNK = 32
"""Images whose features are in memory as a whole."""


@dataclass(frozen=True)
class Seen:
    """What one encoder makes of N images.

    features: of some patches of every image, (N, k, C) a tap, and of its prefix tokens. means: over all patches of
    every image, (N, C) a tap.
    """

    features: Features
    means: tuple[Tensor, ...]

    @classmethod
    def of(cls, features: Features, numbers: Sequence[int], tokens: int, seed: int) -> Seen:
        """Keep what measures need of images that have these numbers in their data set."""
        chosen = chosen_patches(numbers, features.patches[0].shape[1], tokens, seed)
        kept = Features(
            tuple(p.gather(1, chosen[..., None].expand(-1, -1, p.shape[-1])) for p in features.patches),
            features.prefix,
            (1, chosen.shape[1]),
            features.image_size,
            features.keys,
            features.whole,
        )
        return cls(kept, tuple(p.mean(1) for p in features.patches))

    def every(self, step: int) -> Seen:
        """The same of every step-th image."""
        return Seen(self.features.subset(slice(None, None, step)), tuple(m[::step] for m in self.means))

    def __add__(self, other: Seen) -> Seen:
        mine, theirs = self.features, other.features
        joined = Features(
            tuple(torch.cat(pair) for pair in zip(mine.patches, theirs.patches, strict=True)),
            tuple(torch.cat(pair) for pair in zip(mine.prefix, theirs.prefix, strict=True)),
            mine.grid,
            mine.image_size,
            mine.keys + theirs.keys,
            mine.whole,
        )
        return Seen(joined, tuple(torch.cat(pair) for pair in zip(self.means, other.means, strict=True)))


def chosen_patches(numbers: Sequence[int], patches: int, tokens: int, seed: int) -> Tensor:
    """Which patches are kept of images with these numbers: (n, k), k = min(tokens, patches).

    Each image takes the next k of one random order, round and round, so that every position comes in equally often.
    """
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(seed))
    kept = min(tokens, patches)
    places = (torch.tensor(numbers)[:, None] * kept + torch.arange(kept)) % patches
    return order[places].sort(dim=1).values


@dataclass(frozen=True)
class Part:
    """Some of a data set's images, without their labels."""

    whole: DenseDataset
    run: range

    @property
    def name(self) -> str:
        """The data set's."""
        return self.whole.name

    @property
    def split(self) -> str:
        """The data set's."""
        return self.whole.split

    @property
    def tasks(self) -> dict[str, Task]:
        """None: nobody reads the labels."""
        return {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of the run."""
        keys = self.whole.keys
        return tuple(keys[number] for number in self.run)

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.run[index]]


def parts(images: DenseDataset, step: int = 1) -> Iterator[Part]:
    """Every step-th image, a chunk at a time."""
    whole = range(0, len(images), step)
    return (Part(images, whole[start : start + CHUNK]) for start in range(0, len(whole), CHUNK))


def see(
    encoder: Encoder, part: Part, tokens: int, batch_size: int, precision: str, seed: int, label: str
) -> tuple[Features, Seen]:
    """What an encoder makes of some images: all of it, and what measures keep of it."""
    features = capture(encoder, part, batch_size, precision, label)
    return features, Seen.of(features, part.run, tokens, seed)
