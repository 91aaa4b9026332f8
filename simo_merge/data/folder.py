"""Data sets that are folders: images with a `dataset.yaml` and one folder a task, or images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.description import Description, read_description
from simo_merge.data.labels import Labels
from simo_merge.data.reading import read_image, read_labels, read_stored
from simo_merge.data.sample import Sample
from simo_merge.data.source import Source, SourceDataset, Split
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class FolderSource(Source):
    """The files of a folder that `dataset.yaml` describes.

    Raises:
        SimoError: no such folder, or a `dataset.yaml` that is missing or wrong.
    """

    layout = "folder"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.description: Description = read_description(self.root)
        self.name = self.description.name
        self.tasks = {name: labels.task(name) for name, labels in self.description.tasks.items()}
        images = self.description.images
        suffixes = (images.suffix,) if images.suffix else IMAGE_SUFFIXES
        self._images = find_images(self.root / images.folder, suffixes, recursive=True)
        self._nothing = f"no image in {self.root / images.folder} with a suffix of {', '.join(suffixes)}"

    def split(self, name: str | None) -> Split:
        """The keys of `name.txt` in the splits' folder, in its order, or all images, sorted."""
        if name is None:
            keys: tuple[str, ...] = tuple(self._images)
        else:
            keys = read_split(self.root / self.description.splits, name)
        missing = [key for key in keys if key not in self._images]
        if missing or not keys:
            which = f" for {len(missing)} of {len(keys)} keys, the first is {missing[0]!r}" if missing else ""
            raise SimoError(f"{self._nothing}{which}")
        return Split(name or "all", keys)

    def image(self, key: str) -> Tensor:
        """The picture of a key."""
        return read_image(self._images[key])

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The label file of a key, read as `dataset.yaml` says."""
        labels = self.description.tasks[task]
        return read_labels(self._label(task, key), labels, size, self._mask(labels, key))

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """Label files that are not there, or where all are, mask files."""
        labels = self.description.tasks[task]
        places: list[Callable[[str], Path | None]] = [lambda key: self._label(task, key)]
        places.append(lambda key: self._mask(labels, key))
        for place in places:
            gone = [str(path) for key in keys if (path := place(key)) is not None and not path.is_file()]
            if gone:
                return gone
        return []

    def splits(self) -> tuple[str, ...]:
        """The `.txt` files in the splits' folder, sorted."""
        return tuple(sorted(path.stem for path in (self.root / self.description.splits).glob("*.txt")))

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic] | None:
        """The numbers in the label file of a key."""
        return read_stored(self._label(task, key), self.description.tasks[task])

    def _label(self, task: str, key: str) -> Path:
        labels = self.description.tasks[task]
        return self.root / (labels.folder or task) / f"{key}{labels.suffix}"

    def _mask(self, labels: Labels, key: str) -> Path | None:
        return None if labels.mask_folder is None else self.root / labels.mask_folder / f"{key}.png"


class FolderDataset(SourceDataset):
    """Images with labels, read from a folder that `dataset.yaml` describes (docs/own-data.md).

    Files are paired by key: the image `images/KEY.jpg` belongs to `depth/KEY.png` and so on. The keys come
    from the split's file, in its order, or from the sorted names of the images where no split is asked for.

    Args:
        root: The folder.
        split: Name of a file in the splits' folder, without `.txt`; None takes every image.
        tasks: The tasks to read; None takes all that `dataset.yaml` lists. The tasks of
            `simo_merge.data.derived` can be named too; what they are computed from need not be.
        size: Height and width to bring images and labels to; None leaves them as they are.

    Raises:
        SimoError: an unknown split or task, a key that occurs twice, an image or a label that is missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        tasks: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(FolderSource(root), split, tasks, size)


class ImageFolder:
    """The pictures that lie directly in a folder, without labels: calibration images.

    Sorted by name; the key is the name without suffix. Files that are no pictures are passed over by suffix.

    Args:
        root: The folder.
        size: Height and width to resize every picture to (bilinear, antialiased, proportions not kept); None
            leaves each as it is, and then `collate` needs them to be of one size.

    Raises:
        SimoError: no folder, no pictures in it, or two pictures with one key.
    """

    def __init__(self, root: str | Path, size: tuple[int, int] | None = None) -> None:
        self.root = Path(root)
        if size is not None and min(size) < 1:
            raise SimoError(f"size is {size}, expected (height, width), both at least 1")
        self.size = size
        self.name = self.root.resolve().name
        self.split = "all"
        self.tasks: dict[str, Task] = {}
        self._images = find_images(self.root, IMAGE_SUFFIXES, recursive=False)
        if not self._images:
            raise SimoError(
                f"no pictures in {self.root}: expected files with a suffix of {', '.join(IMAGE_SUFFIXES)} "
                "directly in this folder"
            )
        self.keys: tuple[str, ...] = tuple(self._images)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        key = self.keys[index]
        image = read_image(self._images[key])
        if self.size is not None and tuple(image.shape[1:]) != tuple(self.size):
            image = F.interpolate(image[None], size=self.size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return Sample(image=image, key=key)


def find_images(folder: Path, suffixes: Sequence[str], recursive: bool) -> dict[str, Path]:
    """Key -> picture, sorted by key: the path inside `folder` without suffix, with forward slashes.

    Raises:
        SimoError: no such folder, or two files with one key (as `a.jpg` and `a.png`).
    """
    if not folder.is_dir():
        raise SimoError(f"{folder} is not a folder; expected one with images")
    found: dict[str, Path] = {}
    for path in folder.rglob("*") if recursive else folder.iterdir():
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        key = inside.with_suffix("").as_posix()
        if key in found:
            raise SimoError(f"{found[key]} and {path} have the same key {key!r}; keep one of the two")
        found[key] = path
    return dict(sorted(found.items()))


def read_split(folder: Path, split: str) -> tuple[str, ...]:
    """The keys in `folder/split.txt`, one a line, in the file's order; blank lines are passed over.

    Raises:
        SimoError: no such split (those that exist are listed), no keys, a key twice or one that leaves the
        folder.
    """
    path = folder / f"{split}.txt"
    if PurePosixPath(split).name != split or not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise SimoError(f"no split {split!r} in {folder}; the splits there are: {known}")
    keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not keys:
        raise SimoError(f"{path} is empty, expected one key (an image's name without suffix) a line")
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise SimoError(f"{path}: key {key!r} occurs twice; each image counts once")
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise SimoError(f"{path}: key {key!r} leads out of the data set's folder")
        seen.add(key)
    return keys
