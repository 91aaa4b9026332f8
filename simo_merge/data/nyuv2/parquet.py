"""The parquet files of the Hub's data set `tanganke/nyuv2`: MTAN's images, channels first."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.columns import to_numpy
from simo_merge.data.nyuv2.handles import PerProcess
from simo_merge.data.nyuv2.layout import PAPER_SPLITS, SPLITS, NyuLayout, mtan_split
from simo_merge.data.nyuv2.matlab import needed
from simo_merge.data.reading import image_from_array, labels_from_array
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

COLUMNS = {"segmentation": "segmentation", "depth": "depth", "normals": "normal"}
"""Task -> its column."""
_PARTS = ("train", "val")
_NAME = re.compile(r"(train|val)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True)
class Shard:
    """One file: the row at which each of its row groups begins, and its end."""

    path: Path
    bounds: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many images it has."""
        return self.bounds[-1]


class Parquet(NyuLayout):
    """`train-00000-of-00008.parquet` and so on, with `image`, `segmentation`, `depth` and `normal` as nested lists.

    `image` (3, H, W) fractions in [0, 1], `segmentation` (H, W) 0 to 12 with -1 for unlabelled, `depth` (1, H, W)
    metres with 0 for none, `normal` (3, H, W) with a zero vector for none; `noise` is passed over. Keys are
    `train/17` and `val/3`, numbered through the files of a part, where `val` are the 654 *test* images.

    Of each column the row group that was read last is kept, so images in order are read once, and images in random
    order are slow where row groups are large; `datasets/nyuv2/prepare.py` makes files of them.

    Args:
        root: The folder with the files, or with `data` and them in it.
        classes: 13.

    Raises:
        SimoError: a file that is damaged, or missing before others, or columns of other names.
    """

    layout = "parquet"
    expects = "train-00000-of-00008.parquet and so on, or data with them"
    class_counts = (13,)

    def __init__(self, root: Path, classes: int | None = None) -> None:
        super().__init__(root, classes)
        self._files: PerProcess[dict[Path, Any]] = PerProcess()
        self._groups: PerProcess[dict[str, tuple[Path, int, Any]]] = PerProcess()
        paths = _shards(root)
        columns = self._columns(next(iter(paths.values()))[0]) if paths else set()
        self._shards = {part: [self._shard(path) for path in found] for part, found in paths.items()}
        every: dict[str, Task] = {
            "segmentation": tables.segmentation(13),
            "depth": conventions.METRES.task("depth"),
            "normals": conventions.EIGEN.task("normals"),
        }
        self.tasks: dict[str, Task] = {name: task for name, task in every.items() if COLUMNS[name] in columns}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Parquet files with the Hub's names."""
        return any(_NAME.fullmatch(path.name) for folder in _folders(root) for path in folder.glob("*.parquet"))

    def available(self) -> Sequence[str]:
        """The rows that are there, `train` before `val`."""
        return [f"{part}/{row}" for part, shards in self._shards.items() for row in range(sum(s.rows for s in shards))]

    def splits(self) -> tuple[str, ...]:
        """The official ones, and the paper's."""
        return (*SPLITS, *PAPER_SPLITS)

    def listed(self, name: str) -> tuple[str, ...]:
        """MTAN's lists, and the paper's draw from them."""
        return mtan_split(name)

    def image(self, key: str) -> Tensor:
        """The picture of a row."""
        where, stored = self._cell("image", key)
        return image_from_array(where, stored)

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a row."""
        where, stored = self._cell(COLUMNS[task], key)
        if task == "segmentation":
            return tables.read_classes(where, stored.astype(np.int64), size, 13, 13, first=0, void=-1)
        labels = conventions.METRES if task == "depth" else conventions.EIGEN
        return labels_from_array(where, labels, stored, size)

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic]:
        """The numbers of a row, channels last."""
        return self._cell(COLUMNS[task], key)[1]

    def _cell(self, column: str, key: str) -> tuple[Path, npt.NDArray[np.generic]]:
        """What a column has in a row, channels last, and where that is, for messages."""
        part, _, number = key.partition("/")
        row, shards = int(number), self._shards[part]
        ends = list(accumulate(shard.rows for shard in shards))
        which = bisect_right(ends, row)
        shard, row = shards[which], row - (ends[which - 1] if which else 0)
        group = bisect_right(shard.bounds, row) - 1
        where = Path(f"{shard.path}, row {row}, {column}")
        values = to_numpy(where, self._group(shard, group, column), row - shard.bounds[group])
        return where, np.moveaxis(values, 0, -1) if values.ndim == 3 else values  # (C, H, W) -> (H, W, C)

    def _group(self, shard: Shard, group: int, column: str) -> Any:
        """A column of a row group, the one that was read last or a new one."""
        kept = self._groups.get(dict)
        if column not in kept or kept[column][:2] != (shard.path, group):
            kept.pop(column, None)  # before the next is read, so that there is never more than one
            read = self._reading(shard.path, lambda file: file.read_row_group(group, [column], use_threads=False))
            kept[column] = (shard.path, group, read.column(0))
        return kept[column][2]

    def _shard(self, path: Path) -> Shard:
        metadata = self._reading(path, lambda file: file.metadata)
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return Shard(path, tuple(accumulate(sizes, initial=0)))

    def _columns(self, path: Path) -> set[str]:
        columns = set(self._reading(path, lambda file: file.schema_arrow.names))
        if "image" not in columns:
            have = ", ".join(sorted(columns))
            raise SimoError(f"{path} has the columns {have}; expected image, {', '.join(COLUMNS.values())}")
        return columns

    def _reading(self, path: Path, read: Any) -> Any:
        """What `read` gives for an open file; the files of this process stay open."""
        arrow, parquet = needed("pyarrow", path), needed("pyarrow.parquet", path)
        files = self._files.get(dict)
        try:
            if path not in files:
                files[path] = parquet.ParquetFile(path)
            return read(files[path])
        except (OSError, arrow.ArrowException) as error:
            raise SimoError(
                f"{path} cannot be read as parquet: {' '.join(str(error).split())}. Fetch this file again."
            ) from None


def _folders(root: Path) -> tuple[Path, ...]:
    return (root, root / "data")


def _shards(root: Path) -> dict[str, list[Path]]:
    """The files of each part, in order.

    Raises:
        SimoError: one is missing before others: the rows after it could not be numbered.
    """
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(path for folder in _folders(root) for path in folder.glob("*.parquet")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        part, number, count = match[1], int(match[2]), int(match[3])
        if number in found.setdefault(part, {}) or counts.setdefault(part, count) != count:
            raise SimoError(f"{path} does not belong to {found[part].get(number, 'the others')}; keep one download")
        found[part][number] = path
    for part, paths in found.items():
        gap = next(number for number in range(len(paths) + 1) if number not in paths)
        if gap < len(paths):
            raise SimoError(
                f"{root}: file {gap:05d} of {counts[part]:05d} of {part} is missing, and without it the images of the "
                "files after it have no number; fetch it"
            )
    return {part: [found[part][number] for number in sorted(found[part])] for part in _PARTS if part in found}
