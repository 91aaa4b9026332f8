"""Parts of a split: `train[:80%]`, `val[80%:]`, `val[:500]`, several after one another, and images in an own order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from simo_merge.data import DenseDataset, Sample, open_dataset, parse_spec
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

_PART = re.compile(r"^(?P<split>[^\[\]]+)(?:\[(?P<low>\d+%?)?:(?P<high>\d+%?)?\])?$")


class Part:
    """Some images of a data set, in an order of their own; `split` says which they are."""

    def __init__(self, dataset: DenseDataset, indices: Sequence[int], split: str | None = None) -> None:
        self.dataset = dataset
        self.indices = [int(index) for index in indices]
        self.split = dataset.split if split is None else split

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def tasks(self) -> dict[str, Task]:
        return self.dataset.tasks

    @cached_property
    def keys(self) -> tuple[str, ...]:
        whole = self.dataset.keys
        return tuple(whole[index] for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]


class Joined:
    """Data sets of one kind after one another, as `calibration+train`."""

    def __init__(self, parts: Sequence[DenseDataset]) -> None:
        self.parts = list(parts)
        self.split = "+".join(part.split for part in parts)

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def tasks(self) -> dict[str, Task]:
        return self.parts[0].tasks

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for part in self.parts for key in part.keys)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Sample:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def drawn(dataset: DenseDataset, seed: int) -> Part:
    """The images in an order of the seed, so that the first n are a fair draw; of joined parts each in its own."""
    parts = dataset.parts if isinstance(dataset, Joined) else [dataset]
    order: list[int] = []
    for part in parts:
        order += [len(order) + int(i) for i in np.random.default_rng(seed).permutation(len(part))]
    return Part(dataset, order)


def distinct(*datasets: DenseDataset) -> int:
    """How many images there are in these together; one that is in several counts once."""
    return len({place for dataset in datasets for place in _places(dataset)})


def _places(dataset: DenseDataset) -> list[tuple[str, str]]:
    """Split and key of each image; keys by themselves may come again in another split."""
    if isinstance(dataset, Part):
        whole = _places(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    if isinstance(dataset, Joined):
        return [place for part in dataset.parts for place in _places(part)]
    return [(dataset.split, key) for key in dataset.keys]


def open_part(
    spec: str, options: dict[str, str], split: str, tasks: Sequence[str], limit: int | None = None
) -> DenseDataset:
    """The images that `split` names: a split of the data set, or a part of one in brackets.

    Parts are cut out of one fixed random order, so `[:80%]` and `[80%:]` have nothing in common and neither is the
    first cities or scenes of a list.

    Args:
        spec: as `--data` takes it; its options come before those of the recipe.
        options: further options of the data set, as `{"size": "280x378"}`.
        split: `NAME`, `NAME[:80%]`, `NAME[80%:]` or `NAME[:500]`, or several of them joined by `+`.
        tasks: to read.
        limit: at most so many images of each.

    Raises:
        SimoError: a part that is not written so or is empty, or as `open_dataset`.
    """
    if "+" in split:
        return Joined([open_part(spec, options, part, tasks, limit) for part in split.split("+")])
    found = _PART.match(split)
    if found is None:
        raise SimoError(f"split {split!r} is not understood; write NAME, NAME[:80%], NAME[80%:] or NAME[:500]")
    whole = open_dataset(with_options(spec, options), found["split"], list(tasks))
    if "[" not in split and limit is None:
        return whole
    order = np.random.default_rng(0).permutation(len(whole))
    low, high = (_bound(found[end], len(whole), default) for end, default in (("low", 0), ("high", len(whole))))
    chosen = sorted(order[low:high][:limit])  # sorted: files are read in the order of the list
    if not chosen:
        raise SimoError(f"{split!r} of {whole.name} is empty: the split has {len(whole)} images")
    return Part(whole, chosen, split if len(chosen) == high - low else f"{split}, {len(chosen)} images")


def with_options(spec: str, options: dict[str, str]) -> str:
    """The data set's line of text with options added that it does not state itself."""
    stated = parse_spec(spec).options
    added = "&".join(f"{name}={value}" for name, value in options.items() if name not in stated)
    return spec if not added else f"{spec}{'&' if stated else '?'}{added}"


def _bound(text: str | None, count: int, default: int) -> int:
    if text is None:
        return default
    return round(count * int(text[:-1]) / 100) if text.endswith("%") else min(int(text), count)
