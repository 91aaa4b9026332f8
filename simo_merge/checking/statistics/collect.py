"""One pass over a data set that counts everything that the rules look at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from simo_merge.checking.statistics.classes import ClassStatistics
from simo_merge.checking.statistics.coverage import TaskStatistics
from simo_merge.checking.statistics.edges import EdgeStatistics, chosen
from simo_merge.checking.statistics.geometry import Orientation, Stereo
from simo_merge.checking.statistics.images import ImageStatistics
from simo_merge.checking.statistics.normals import NormalsStatistics
from simo_merge.checking.statistics.splits import SplitReport, report_splits
from simo_merge.checking.statistics.stored import IMAGES, StoredStatistics, looked_into
from simo_merge.checking.statistics.values import ValueStatistics
from simo_merge.checking.statistics.void import LabelsByClass
from simo_merge.data import DERIVED, DenseDataset, Sample, Source
from simo_merge.errors import SimoError
from simo_merge.progress import progress
from simo_merge.tasks import Depth, Disparity, Normals, Segmentation, Task


class Statistics:
    """What was counted of a data set.

    Attributes:
        data, layout, split: Which one.
        total: Images of the split that are here.
        published: Images that the published split has, where it is known.
        tasks: The tasks, by name.
        resized: Whether images and labels were brought to another size when read.
        images: The pictures.
        labels: Each task's labels.
        unreadable: Key of an image that could not be read -> why, a line for each of its files.
        missing: Task -> label files that are not there; set by who opened the data set without that task.
        orientations, stereo, by_class: Pairs of tasks that say something about each other.
        edges: Whether labels fit their images.
        stored: Each task's files, where the source can show them.
        splits: Every split, where the whole source was asked for.
    """

    def __init__(self, dataset: DenseDataset) -> None:
        source = source_of(dataset)
        self.data = dataset.name
        self.split = dataset.split
        self.layout = source.layout if source is not None else ""
        self.total = len(dataset)
        self.published: int | None = getattr(dataset, "published", None)
        self.tasks = dict(dataset.tasks)
        self.resized = getattr(dataset, "size", None) is not None
        self.images = ImageStatistics()
        self.labels: dict[str, TaskStatistics] = {name: _statistics(task) for name, task in self.tasks.items()}
        self.unreadable: dict[str, tuple[str, ...]] = {}
        self.missing: dict[str, tuple[str, ...]] = {}
        own = {name: task for name, task in self.tasks.items() if not _is_derived(task)}
        near = _of(own, Depth) or _of(own, Disparity)
        self.orientations = [Orientation(a, b) for a, b in product(_of(own, Normals), near[:1])]
        self.stereo = [Stereo(a, b) for a, b in product(_of(own, Depth), _of(own, Disparity))]
        others = [task for task in own.values() if not isinstance(task, Segmentation)]
        self.by_class = [LabelsByClass(a, b) for a, b in product(_of(own, Segmentation), others)]
        self.edges = EdgeStatistics(own)
        self.stored = {n: StoredStatistics(t, source) for n, t in own.items() if source and looked_into(t)}
        whole = source is not None and self.published is None and self.split not in source.splits()
        self.splits = report_splits(source) if source is not None and whole else SplitReport()

    def add(self, sample: Sample, with_edges: bool) -> None:
        """Count one sample.

        Args:
            sample: The sample.
            with_edges: Whether it is one of those that are compared with each other.
        """
        self.images.add(sample.image, sample.key)
        for name, labels in self.labels.items():
            labels.add(sample.targets[name], sample.masks[name], sample.key)
        for orientation in self.orientations:
            orientation.add(sample.targets, sample.masks)
        for pair in self.stereo:
            pair.add(sample.targets, sample.masks, sample.key)
        for by_class in self.by_class:
            by_class.add(sample.targets, sample.masks)
        if with_edges:
            self.edges.add(sample)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        splits = {split.name: {"here": len(split.keys), "published": split.published} for split in self.splits.found}
        return {
            "data": self.data,
            "layout": self.layout,
            "split": self.split,
            "images": {"here": self.total, "published": self.published, **self.images.to_json()},
            "splits": splits,
            "unreadable": {key: list(reasons) for key, reasons in self.unreadable.items()},
            "tasks": {name: labels.to_json() for name, labels in self.labels.items()},
            "stored": {name: stored.to_json() for name, stored in self.stored.items() if stored.types},
            "normals_and_depth": [orientation.to_json() for orientation in self.orientations],
            "depth_and_disparity": [pair.to_json() for pair in self.stereo],
            "edges": self.edges.to_json(),
        }


def collect(dataset: DenseDataset, limit: int | None = None) -> Statistics:
    """Read a data set once and count; images that cannot be read are noted and passed over.

    Memory does not grow with the images, but for a digest and a key of each.

    Args:
        dataset: What to read.
        limit: At most so many images, evenly spaced; None reads all.

    Raises:
        SimoError: an empty data set, or a limit below 1.
    """
    indices = spaced(len(dataset), limit)
    statistics = Statistics(dataset)
    compared, looked_at = chosen(indices), set(_evenly(indices, IMAGES))
    label = f"checking {dataset.name} ({dataset.split})"
    for index in progress(indices, len(indices), label):
        try:
            sample = dataset[index]
            _check(sample, statistics.tasks)
        except (SimoError, OSError) as error:
            statistics.unreadable[dataset.keys[index]] = reasons(dataset, index, str(error))
            continue
        statistics.add(sample, index in compared)
        if index in looked_at:
            _look_into(statistics, dataset, sample)
    return statistics


def spaced(count: int, limit: int | None) -> list[int]:
    """Indices of all of `count` images, or of `limit` evenly spaced ones, the first and the last among them.

    Raises:
        SimoError: no images, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise SimoError(f"limit is {limit}, expected 1 or more images")
    if count == 0:
        raise SimoError("the data set has no images to check")
    return _evenly(range(count), count if limit is None else limit)


def reasons(dataset: DenseDataset, index: int, first: str) -> tuple[str, ...]:
    """Why a sample cannot be read: every file of it that is damaged, where the source can be asked one by one."""
    source = source_of(dataset)
    key = dataset.keys[index]
    if source is None:
        return (first,)
    found: list[str] = []
    try:
        image = source.image(key)
    except (SimoError, OSError) as error:
        return (str(error),)
    for name in (name for name in dataset.tasks if name in source.tasks):
        try:
            source.label(name, key, (int(image.shape[1]), int(image.shape[2])))
        except (SimoError, OSError) as error:
            found.append(str(error))
    return tuple(found) or (first,)


def source_of(dataset: DenseDataset) -> Source | None:
    """The source of a data set, where it has one."""
    source = getattr(dataset, "source", None)
    return source if isinstance(source, Source) else None


def _evenly(items: Sequence[int], count: int) -> list[int]:
    if count >= len(items):
        return list(items)
    return [items[int(place)] for place in np.unique(np.linspace(0, len(items) - 1, count).round())]


def _check(sample: Sample, tasks: dict[str, Task]) -> None:
    """Refuse what no reader of ours hands out: statistics of it would mean nothing.

    Raises:
        SimoError: a target or mask that is missing, of another shape or type, or out of range.
    """
    for name, task in tasks.items():
        target, mask = sample.targets.get(name), sample.masks.get(name)
        if target is None or mask is None:
            raise SimoError(f"{sample.key}: no target or no mask of task {name!r}")
        shape = sample.size if isinstance(task, Segmentation) else (task.out_channels, *sample.size)
        if tuple(target.shape) != shape or tuple(mask.shape) != sample.size:
            raise SimoError(
                f"{sample.key}: {name} has shape {tuple(target.shape)} and its mask {tuple(mask.shape)}; expected "
                f"{shape} and {sample.size}, those of the image"
            )
        values = target[mask] if isinstance(task, Segmentation) else target[:, mask]
        _check_values(sample.key, task, values)


def _check_values(key: str, task: Task, values: Tensor) -> None:
    if isinstance(task, Segmentation):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < len(task.classes):
            low, high = int(values.min()), int(values.max())
            raise SimoError(
                f"{key}: {task.name} has classes {low} to {high}, expected 0 to {len(task.classes) - 1}; "
                "a number that means no label must be masked"
            )
    elif not bool(values.isfinite().all()):
        raise SimoError(f"{key}: {task.name} has NaN or infinite values where it is valid; they must be masked")


def _look_into(statistics: Statistics, dataset: DenseDataset, sample: Sample) -> None:
    source = source_of(dataset)
    for name, stored in statistics.stored.items():
        numbers = source.stored(name, sample.key) if source is not None else None
        if numbers is not None:
            stored.add(numbers, sample.masks[name])


def _statistics(task: Task) -> TaskStatistics:
    if isinstance(task, Segmentation):
        return ClassStatistics(task)
    return NormalsStatistics(task) if isinstance(task, Normals) else ValueStatistics(task)


def _is_derived(task: Task) -> bool:
    return task.name in DERIVED and DERIVED[task.name].task == task


def _of(tasks: dict[str, Task], kind: type[Task]) -> list[Any]:
    return [task for task in tasks.values() if isinstance(task, kind)]
