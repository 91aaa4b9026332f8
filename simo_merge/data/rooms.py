"""The embedded data set: 740 rendered rooms with exact segmentation, depth and normals (datasets/rooms)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simo_merge.data.description import FILE_NAME
from simo_merge.data.folder import FolderDataset
from simo_merge.errors import SimoError

ROOMS_TASKS = ("segmentation", "depth", "normals")
ROOMS_SPLITS = ("train", "calibration", "val", "test")


def rooms(
    split: str,
    tasks: Sequence[str] | None = ROOMS_TASKS,
    root: str | Path | None = None,
    size: tuple[int, int] | None = None,
) -> FolderDataset:
    """Furnished rooms, 168 x 126 pixels, laid out in the manner of NYUv2 but **synthetic**.

    A figure on it is not a figure on NYUv2.
    Splits: train 450, calibration 100, val 60, test 130 images. Every image is a room of its own.

    Args:
        split: One of `ROOMS_SPLITS`.
        tasks: `segmentation` (13 classes), `depth` (m, along the optical axis), `normals`, and the
            derived `occlusion_edges`, `texture_edges`, `keypoints`, `reconstruction`, `shading`.
        root: The set's folder; None looks where `find_rooms` does.
        size: Height and width to bring images and labels to; None leaves them at 126 x 168.

    Raises:
        SimoError: the set is not there, or the split or a task is unknown.
    """
    return FolderDataset(find_rooms(root), split, ROOMS_TASKS if tasks is None else tasks, size)


def find_rooms(root: str | Path | None = None) -> Path:
    """The folder of the rooms.

    It is `root`, or else `datasets/rooms` in the repository that this package lies in, or in the current
    folder.

    Raises:
        SimoError: the set is in none of these places.
    """
    here = Path("datasets") / "rooms"
    places = [Path(root)] if root is not None else [Path(__file__).parents[2] / here, here]
    for place in places:
        if (place / FILE_NAME).is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise SimoError(
        f"the rooms data set was not found in {looked}. It comes with the repository, in datasets/rooms; "
        "clone that and give the folder (root=DIR, --rooms DIR or rooms:DIR)."
    )
