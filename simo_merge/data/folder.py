"""Data sets that are folders: images with a `dataset.yaml` and one folder a task, or images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.derived import DERIVED
from simo_merge.data.description import FILE_NAME, Description, read_description
from simo_merge.data.labels import Labels
from simo_merge.data.reading import read_image, read_labels
from simo_merge.data.sample import Sample
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class FolderDataset:
    """Images with labels, read from a folder that `dataset.yaml` describes (docs/own-data.md).

    Files are paired by key: the image `images/KEY.jpg` belongs to `depth/KEY.png` and so on. The keys come
    from the split's file, in its order, or from the sorted names of the images where no split is asked for.

    Args:
        root: The folder.
        split: Name of a file in the splits' folder, without `.txt`; None takes every image.
        tasks: The tasks to read; None takes all that `dataset.yaml` lists. The tasks of
            `simo_merge.data.derived` can be named too; what they are computed from need not be.

    Raises:
        SimoError: an unknown split or task, a key that occurs twice, an image or a label that is missing.
    """

    def __init__(self, root: str | Path, split: str | None = None, tasks: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.description: Description = read_description(self.root)
        self.name = self.description.name
        self.split = split or "all"
        self.tasks: dict[str, Task] = {name: self._task(name) for name in _chosen(self.description, tasks)}
        self._derived = [name for name in self.tasks if name not in self.description.tasks]
        self._sources = dict.fromkeys(DERIVED[name].source for name in self._derived)
        self._read = list(dict.fromkeys([*(n for n in self.tasks if n not in self._derived), *self._sources]))
        self._read = [name for name in self._read if name != "image"]
        folder = self.root / self.description.images.folder
        suffixes = (self.description.images.suffix,) if self.description.images.suffix else IMAGE_SUFFIXES
        found = find_images(folder, suffixes, recursive=True)
        splits = self.root / self.description.splits
        self.keys: tuple[str, ...] = tuple(found) if split is None else read_split(splits, split)
        self._images = _pick(found, self.keys, f"no image in {folder} with a suffix of {', '.join(suffixes)}")
        for name in self._read:
            self._check_files(name, self.description.tasks[name])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        key = self.keys[index]
        image = read_image(self._images[key])
        size = (int(image.shape[1]), int(image.shape[2]))
        known: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self._read:
            labels = self.description.tasks[name]
            known[name] = read_labels(self._label(name, labels, key), labels, size, self._mask(labels, key))
        for name in self._derived:
            known[name] = DERIVED[name].compute(image, known)
        return Sample(
            image=image,
            targets={name: known[name][0] for name in self.tasks},
            masks={name: known[name][1] for name in self.tasks},
            key=key,
        )

    def _task(self, name: str) -> Task:
        if name in self.description.tasks:
            return self.description.tasks[name].task(name)
        source = DERIVED[name].source
        if source != "image" and getattr(self.description.tasks.get(source), "kind", None) != source:
            raise SimoError(
                f"task {name!r} is computed from {source}, and {self.root / FILE_NAME} lists no task named "
                f"{source!r} of that kind"
            )
        return DERIVED[name].task

    def _label(self, name: str, labels: Labels, key: str) -> Path:
        return self.root / (labels.folder or name) / f"{key}{labels.suffix}"

    def _mask(self, labels: Labels, key: str) -> Path | None:
        return None if labels.mask_folder is None else self.root / labels.mask_folder / f"{key}.png"

    def _check_files(self, name: str, labels: Labels) -> None:
        places: list[Callable[[str], Path | None]] = [lambda key: self._label(name, labels, key)]
        places.append(lambda key: self._mask(labels, key))
        for place in places:
            missing = [path for key in self.keys if (path := place(key)) is not None and not path.is_file()]
            if missing:
                raise SimoError(
                    f"{missing[0]} does not exist: {len(missing)} of {len(self.keys)} images of split "
                    f"{self.split!r} have no file for task {name!r}. Add them, or take the keys out."
                )


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


def _pick(found: dict[str, Path], keys: Sequence[str], nothing: str) -> dict[str, Path]:
    missing = [key for key in keys if key not in found]
    if missing or not keys:
        which = f" for {len(missing)} of {len(keys)} keys, the first is {missing[0]!r}" if missing else ""
        raise SimoError(f"{nothing}{which}")
    return {key: found[key] for key in keys}


def _chosen(description: Description, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if tasks is None:
        return tuple(description.tasks)
    known = [*description.tasks, *(name for name in DERIVED if name not in description.tasks)]
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise SimoError(f"{description.name} has no task {', '.join(unknown)}; it has {', '.join(known)}")
    if len(set(tasks)) != len(tasks):
        raise SimoError(f"tasks {list(tasks)} name one task twice")
    return tuple(tasks)
