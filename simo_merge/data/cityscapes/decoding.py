"""The files of Cityscapes -> targets and masks, and the tasks that they teach."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simo_merge.data.cityscapes import tables
from simo_merge.data.cityscapes.units import LARGEST, PUBLISHED, TYPICAL_DEPTH, Camera, DisparityUnit
from simo_merge.data.labels import DisparityLabels
from simo_merge.data.reading import read_ids, read_labels
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Disparity, Segmentation, Task

_LARGEST_UID = 99_999_99


def known_tasks(classes: int, unit: DisparityUnit) -> dict[str, Task]:
    """Every task that a layout can have, by name.

    Args:
        classes: 19, or 7 for the categories.
        unit: Unit of the disparity.
    """
    streets, parts = tables.classes(classes), tables.parts()
    tasks: list[Task] = [
        _segmentation("segmentation", streets),
        _segmentation("parts", parts),
        Disparity(unit=unit.name, scale=unit.typical),
        Depth(unit="m", scale=TYPICAL_DEPTH),
    ]
    return {task.name: task for task in tasks}


def _segmentation(name: str, classes: tuple[tables.Class, ...]) -> Segmentation:
    return Segmentation(name=name, classes=tuple(c.name for c in classes), palette=tuple(c.colour for c in classes))


def read_label_ids(path: Path, size: tuple[int, int], classes: int) -> tuple[Tensor, Tensor]:
    """A picture of label ids 0 to 33 -> class indices (H, W) and the mask of those that count.

    Raises:
        SimoError: the file is missing, damaged, of another size, or holds what is no label id.
    """
    ids = read_ids(path, size)
    ids = np.where(ids == -1, tables.BYTES - 1, ids)
    inside = (ids >= 0) & (ids < tables.BYTES)
    index = np.where(inside, tables.class_of_id(classes)[np.where(inside, ids, 0)], tables.UNKNOWN)
    if (index == tables.UNKNOWN).any():
        raise SimoError(
            f"{path}: ids {_some(ids[index == tables.UNKNOWN])} occur, expected label ids 0 to 33 (or 255); "
            "is this a picture of instances, or of another data set?"
        )
    return _indexed(index)


def read_class_array(path: Path, size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """An array of class indices -> the same (H, W) and their mask; -1 (and 255) is void.

    Raises:
        SimoError: the file is missing, damaged, of another size, or holds a class from `count` on.
    """
    index = read_ids(path, size)
    index = np.where(index == tables.BYTES - 1, tables.VOID, index)
    wrong = (index < tables.VOID) | (index >= count)
    if wrong.any():
        raise SimoError(f"{path}: classes {_some(index[wrong])} occur, expected 0 to {count - 1}, or -1 for void")
    return _indexed(index)


def read_part_uids(path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A picture of panoptic-parts uids -> indices of parts (H, W) and their mask.

    A uid has the semantic id in front, then three digits for the instance, then two for the part; numbers shorter than
    that name no part (panoptic_parts, label_format.md). What has no part is background, and every pixel counts.

    Raises:
        SimoError: the file is missing, damaged, of another size, or holds what is no uid.
    """
    uids = read_ids(path, size)
    wrong = (uids < 0) | (uids > _LARGEST_UID) | ((uids >= 100) & (uids <= 999))
    if wrong.any():
        raise SimoError(
            f"{path}: ids {_some(uids[wrong])} occur, expected uids of panoptic parts: 1, 2 or 4 to 7 digits; "
            "is this the picture of another label?"
        )
    sid_pid = uids // 100_000 * 100 + uids % 100  # a uid without a part has a sid of 0 here, and so no part
    return _indexed(tables.part_of_sid_pid()[sid_pid])


def _some(wrong: tables.Ids) -> str:
    return ", ".join(str(value) for value in np.unique(wrong)[:5])


def _indexed(index: tables.Ids) -> tuple[Tensor, Tensor]:
    valid = index != tables.VOID
    return torch.from_numpy(np.where(valid, index, 0)), torch.from_numpy(valid)


def read_disparity_picture(path: Path, size: tuple[int, int], unit: DisparityUnit) -> tuple[Tensor, Tensor]:
    """A 16-bit picture of stored numbers -> disparity (1, H, W) in `unit` and its mask: 0 is no measurement.

    Raises:
        SimoError: the file is missing, damaged, of another size, or not 16-bit.
    """
    return read_labels(path, DisparityLabels(scale=unit.scale, offset=unit.offset, unit=unit.name, bits=16), size)


def read_disparity_array(path: Path, size: tuple[int, int], unit: DisparityUnit) -> tuple[Tensor, Tensor]:
    """An array of p / 65535 -> disparity (1, H, W) in `unit` and its mask: 0 is no measurement.

    Between 0 and 1 lies no p: what is there comes from rounding, or from a file that was interpolated, and counts as
    1, infinitely far.

    Raises:
        SimoError: the file is missing, damaged, of another size, or holds values outside [0, 1].
    """
    values, valid = read_labels(path, DisparityLabels(unit=PUBLISHED.name), size)
    if float(values.max()) > 1.0:
        raise SimoError(
            f"{path}: a disparity of {float(values.max()):g}, expected p / {LARGEST}, from 0 to 1. "
            "Other units cannot be told from the values; prepare the arrays anew (datasets/cityscapes/prepare.py)."
        )
    stored = (values.double() * LARGEST).clamp(min=1)
    return torch.where(valid, unit.of_stored(stored), 0.0).float(), valid


def read_camera(path: Path) -> Camera:
    """Baseline and focal length from a `*_camera.json`.

    Raises:
        SimoError: the file is missing or damaged, or one of the two is not a positive number.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        camera = Camera(float(values["extrinsic"]["baseline"]), float(values["intrinsic"]["fx"]))
    except FileNotFoundError:
        raise SimoError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimoError(
            f"{path} cannot be read as a camera: {type(error).__name__} {error}; "
            "expected JSON with extrinsic.baseline and intrinsic.fx"
        ) from None
    if not all(math.isfinite(value) and value > 0 for value in (camera.baseline, camera.focal)):
        raise SimoError(
            f"{path}: baseline {camera.baseline:g} m and fx {camera.focal:g} px, expected two positive numbers"
        )
    return camera
