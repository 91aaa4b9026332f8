"""Where a data set's pixels come from, and the one data set class that reads every source."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data.derived import DERIVED
from simo_merge.data.resize import resize
from simo_merge.data.sample import Sample
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The images of a split that are on disk.

    Attributes:
        name: The split's name.
        keys: Its images, in the order of its list.
        published: How many images the published list has; None where there is none. A partial copy has fewer keys.
    """

    name: str
    keys: tuple[str, ...]
    published: int | None = None


class Source(ABC):
    """A data set as it lies on disk: it finds the files of a key and turns them into tensors and masks.

    A source is given to worker processes, so it must pickle; open files are opened anew where they are missing.

    Attributes:
        root: The folder (or the file) that it reads.
        name: Name of the data set; results carry it.
        layout: Name of the way in which it lies on disk.
        tasks: The tasks that have labels here, by name.
    """

    root: Path
    name: str
    layout: str
    tasks: Mapping[str, Task]

    @abstractmethod
    def split(self, name: str | None) -> Split:
        """The images of a split; None takes every image that is there.

        Raises:
            SimoError: an unknown split (the known ones are listed), or one of which no image is there.
        """

    @abstractmethod
    def image(self, key: str) -> Tensor:
        """The picture, `(3, H, W)` float32 RGB in [0, 1].

        Raises:
            SimoError: the file is missing or damaged; it is named.
        """

    @abstractmethod
    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of one task, as `Sample` defines them; every sentinel has become the mask.

        Args:
            task: One of `tasks`.
            key: The image.
            size: Height and width of its picture, which the label must have.

        Raises:
            SimoError: the file is missing or damaged, of another size, or holds what cannot be; it is named.
        """

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """The label files of a task that are not there for these images, to be told before any work starts."""
        return []

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, where there is a list of them."""
        return ()

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic] | None:
        """The numbers of a label as they lie on disk, `(H, W)` or `(H, W, C)`, for who checks the files themselves.

        None where they are not to be had one by one.
        """
        return None


class SourceDataset:
    """The images of one split of a source, with the tasks that were asked for.

    Args:
        source: Where they are read from.
        split: Name of the split; None takes every image.
        tasks: The tasks to read; None takes all that the source has, and none are read for an empty sequence.
            Those of `simo_merge.data.derived` can be named too; what they are computed from need not be.
        size: Height and width to bring images and labels to; None leaves them as they are.

    Raises:
        SimoError: an unknown split or task, or a label that is missing.
    """

    def __init__(
        self,
        source: Source,
        split: str | None = None,
        tasks: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        if size is not None and min(size) < 1:
            raise SimoError(f"size is {size}, expected (height, width), both at least 1")
        self.source = source
        self.name = source.name
        self.size = size
        found = source.split(split)
        self.split = found.name
        self.published = found.published
        self.keys: tuple[str, ...] = found.keys
        if found.published is not None and len(found.keys) < found.published:
            _LOG.warning(
                "%s (%s): %d of the %d images of this split are here; scores on a part are not comparable",
                self.name,
                self.split,
                len(found.keys),
                found.published,
            )
        self._choose(tasks)

    def _choose(self, tasks: Sequence[str] | None) -> None:
        source = self.source
        chosen = _chosen(source, tasks)
        self.tasks: dict[str, Task] = {name: _task(source, name) for name in chosen}
        self._derived = [name for name in chosen if name not in source.tasks]
        sources = dict.fromkeys(DERIVED[name].source for name in self._derived)
        self._read = [name for name in dict.fromkeys([*chosen, *sources]) if name in source.tasks]
        for name in self._read:
            missing = source.missing(name, self.keys)
            if missing:
                raise SimoError(
                    f"{missing[0]} does not exist: {len(missing)} of {len(self.keys)} images of split "
                    f"{self.split!r} have no file for task {name!r}. Add them, or take the keys out."
                )

    def offered(self, names: Iterable[str]) -> list[str]:
        """Those of these tasks that can be had here: read from files, or derived from what is read."""
        return [name for name in names if name in self.source.tasks or _derivable(self.source, name)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        key = self.keys[index]
        image = self.source.image(key)
        full = (int(image.shape[1]), int(image.shape[2]))
        known = {name: self.source.label(name, key, full) for name in self._read}
        sample = Sample(image, {n: t for n, (t, _) in known.items()}, {n: m for n, (_, m) in known.items()}, key)
        if self.size is not None and self.size != full:
            sample = resize(sample, self.size)
            known = {name: (sample.targets[name], sample.masks[name]) for name in self._read}
        for name in self._derived:
            known[name] = DERIVED[name].compute(sample.image, known)
        return Sample(
            image=sample.image,
            targets={name: known[name][0] for name in self.tasks},
            masks={name: known[name][1] for name in self.tasks},
            key=key,
        )


def _task(source: Source, name: str) -> Task:
    if name in source.tasks:
        return source.tasks[name]
    if not _derivable(source, name):
        needed = DERIVED[name].source
        raise SimoError(
            f"task {name!r} is computed from {needed}, and {source.name} in {source.root} has no task named "
            f"{needed!r} of that kind"
        )
    return DERIVED[name].task


def _derivable(source: Source, name: str) -> bool:
    """Whether a task can be computed from the image, or from one of that name and kind that the source has."""
    needed = DERIVED[name].source if name in DERIVED else ""
    return needed == "image" or (needed in source.tasks and source.tasks[needed].kind == needed)


def _chosen(source: Source, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if tasks is None:
        return tuple(source.tasks)
    known = [*source.tasks, *(name for name in DERIVED if name not in source.tasks)]
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise SimoError(f"{source.name} has no task {', '.join(unknown)}; it has {', '.join(known)}")
    if len(set(tasks)) != len(tasks):
        raise SimoError(f"tasks {list(tasks)} name one task twice")
    return tuple(tasks)
