"""The official distribution: `nyu_depth_v2_labeled.mat`, `splits.mat`, and Eigen's archive of normals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.nyuv2.handles import PerProcess
from simo_merge.data.nyuv2.layout import NyuLayout
from simo_merge.data.nyuv2.matlab import load_matlab, needed
from simo_merge.data.reading import image_from_array, labels_from_array, read_labels, read_stored
from simo_merge.errors import SimoError
from simo_merge.tasks import Task

_LOG = logging.getLogger(__name__)

FILE_NAME = "nyu_depth_v2_labeled.mat"
BYTES = 2_972_037_809
"""Size of the published file."""
_FIELDS = ("images", "depths", "labels")


class Official(NyuLayout):
    """`nyu_depth_v2_labeled.mat`, read one frame at a time.

    It is MATLAB 7.3, which is HDF5 with the axes reversed: `images` (N, 3, W, H) uint8, `depths` (N, W, H) float32
    metres with the holes of the sensor filled in (`rawDepths` has them as they were), `labels` (N, W, H) uint16 with
    0 for unlabelled and 1 to 894. Normals are read where Eigen's archive lies beside it, unpacked: `normals/0000.png`
    is that of frame 0001, and `masks/0000.png` is not zero where it is valid.

    The split lists are those of a `splits.mat` beside the file, or else the official ones.

    Args:
        root: The file, or the folder that it lies in.
        classes: 13 (the default) or 40.
        archive: Folder with `normals/` and `masks/`; None looks beside the file, and in `normals_gt/` there.

    Raises:
        SimoError: no such file, a damaged one, or one that is laid out in another way.
    """

    layout = "official"
    expects = f"{FILE_NAME}, or the folder that it lies in"

    def __init__(self, root: Path, classes: int | None = None, archive: Path | None = None) -> None:
        super().__init__(root, classes)
        self.file = root if root.is_file() else root / FILE_NAME
        self._opened: PerProcess[Any] = PerProcess()
        self._count, self.frame_size = self._look()
        self._lists = read_splits(self.file.with_name("splits.mat"))
        self.archive = _checked_archive(archive) if archive is not None else find_archive(self.file.parent)
        self.tasks: dict[str, Task] = {
            "segmentation": tables.segmentation(self.classes),
            "depth": conventions.METRES.task("depth"),
        }
        if self.archive is not None:
            self.tasks["normals"] = conventions.EIGEN.task("normals")

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """A `.mat` file, or a folder with the official one."""
        return (root.is_file() and root.suffix == ".mat") or (root / FILE_NAME).is_file()

    def available(self) -> Sequence[str]:
        """All frames of the file."""
        return [f"{frame:04d}" for frame in range(1, self._count + 1)]

    def listed(self, name: str) -> tuple[str, ...]:
        """The list of `splits.mat` where it lies beside the file, or the official one."""
        official = super().listed(name)
        if self._lists is None or self._lists[name] == official:
            return official
        _LOG.warning(
            "%s: its %d %s frames are not those of the official split",
            self.file.with_name("splits.mat"),
            len(self._lists[name]),
            name,
        )
        return self._lists[name]

    def image(self, key: str) -> Tensor:
        """The picture of a frame."""
        return image_from_array(self.file, self.frame("images", key).transpose(2, 1, 0))  # (3, W, H) -> (H, W, 3)

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Target and mask of a frame."""
        where = Path(f"{self.file}, frame {key}")
        if task == "segmentation":
            ids = self.stored(task, key).astype(np.int64)
            return tables.read_classes(where, ids, size, tables.LABELS, self.classes)
        if task == "depth":
            return labels_from_array(where, conventions.METRES, self.stored(task, key), size)
        normals, mask = self._normals(key)
        return read_labels(normals, conventions.EIGEN, size, mask)

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic]:
        """The numbers of a frame, (H, W), or of its picture of normals, (H, W, 3)."""
        if task == "normals":
            return read_stored(self._normals(key)[0], conventions.EIGEN)
        return self.frame("labels" if task == "segmentation" else "depths", key).T

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """Files of the archive of normals that are not there."""
        if task != "normals":
            return []
        files = (path for key in keys for path in self._normals(key) if path is not None)
        return [str(path) for path in files if not path.is_file()]

    def frame(self, field: str, key: str) -> npt.NDArray[np.generic]:
        """What a field of the file has for one frame, axes as they are stored."""
        try:
            return np.asarray(self._opened.get(self._open)[field][int(key) - 1])
        except (OSError, RuntimeError) as error:
            raise _damaged(f"{self.file}, frame {key}, {field}", error) from None

    def has(self, field: str) -> bool:
        """Whether the file has a field."""
        return field in self._opened.get(self._open)

    def _normals(self, key: str) -> tuple[Path, Path | None]:
        """The picture of a frame's normals, and of their mask: the archive counts from 0."""
        assert self.archive is not None
        name = f"{int(key) - 1:04d}.png"
        masks = self.archive / "masks"
        return self.archive / "normals" / name, masks / name if masks.is_dir() else None

    def _open(self) -> Any:
        h5py = needed("h5py", self.file)
        try:
            return h5py.File(self.file, "r")
        except FileNotFoundError:
            raise SimoError(f"{self.file} does not exist") from None
        except OSError as error:
            raise _damaged(str(self.file), error) from None

    def _look(self) -> tuple[int, tuple[int, int]]:
        """Number of frames, and their height and width."""
        h5py: ModuleType = needed("h5py", self.file)
        with self._open() as file:
            gone = [field for field in _FIELDS if not isinstance(file.get(field), h5py.Dataset)]
            if gone:
                raise SimoError(f"{self.file} has no {', '.join(gone)}; is it {FILE_NAME}?")
            shapes = {field: tuple(int(n) for n in file[field].shape) for field in _FIELDS}
        pictures = shapes["images"]
        whole = len(pictures) == 4 and pictures[1] == 3
        if not whole or {shapes["depths"], shapes["labels"]} != {(pictures[0], *pictures[2:])}:
            raise SimoError(
                f"{self.file}: images {shapes['images']}, depths {shapes['depths']}, labels {shapes['labels']}; "
                "expected (N, 3, W, H), (N, W, H) and (N, W, H), as MATLAB 7.3 stores them"
            )
        return pictures[0], (pictures[3], pictures[2])


def find_archive(folder: Path) -> Path | None:
    """Where Eigen's archive of normals was unpacked: `folder`, or `normals_gt` in it."""
    return next((place for place in (folder / "normals_gt", folder) if (place / "normals").is_dir()), None)


def read_splits(path: Path) -> dict[str, tuple[str, ...]] | None:
    """The keys of `train` and `test` in a `splits.mat`; None where there is no such file.

    Raises:
        SimoError: the file cannot be read, or holds no numbers from 1.
    """
    if not path.is_file():
        return None
    stored = load_matlab(path)
    lists = {}
    for name in ("train", "test"):
        field = f"{name}Ndxs"
        if field not in stored:
            raise SimoError(f"{path} has no {field}; expected trainNdxs and testNdxs")
        frames = np.asarray(stored[field]).ravel()
        if frames.dtype.kind not in "biuf" or not frames.size or frames.min() < 1:
            raise SimoError(f"{path}: {field} holds {frames[:3].tolist()}..., expected numbers of frames from 1")
        lists[name] = tuple(f"{int(frame):04d}" for frame in frames)
    return lists


def _checked_archive(folder: Path) -> Path:
    found = find_archive(folder)
    if found is None:
        raise SimoError(f"{folder} has no folder normals; expected Eigen's archive, unpacked: normals/ and masks/")
    return found


def _damaged(what: str, error: Exception) -> SimoError:
    return SimoError(
        f"{what} cannot be read as MATLAB 7.3 (HDF5): {' '.join(str(error).split())}. "
        f"The published {FILE_NAME} has {BYTES} bytes; fetch it again if yours is shorter."
    )
