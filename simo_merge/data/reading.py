"""One label file -> target and mask. Sentinels end here: out come finite numbers and a boolean mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data.labels import (
    DepthLabels,
    DisparityLabels,
    Labels,
    NormalsLabels,
    RegressionLabels,
    SegmentationLabels,
    ValueLabels,
)
from simo_merge.errors import SimoError

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_EIGHT_BIT = {"L", "P", "RGB", "RGBA", "LA", "PA", "1", "CMYK", "YCbCr"}
SHORTEST_NORMAL = 0.1
"""A stored normal shorter than this has no direction. The grey 127 or 128 of 8-bit files is 0.007 long."""


def read_image(path: Path) -> Tensor:
    """An 8-bit picture as `(3, H, W)` float32 RGB in [0, 1], turned as its EXIF orientation says.

    A `.npy` file holds `(H, W, 3)`: fractions in [0, 1], or bytes.

    Raises:
        SimoError: the file is missing, damaged, not 8-bit, or an array of another shape or range.
    """
    if path.suffix == ".npy":
        return image_from_array(path, _load_array(path))
    with _open(path) as picture:
        if picture.mode not in _EIGHT_BIT:
            raise SimoError(f"{path}: pixels of type {picture.mode!r}, expected 8 bits a channel; convert the image")
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(upright), 2, 0))  # while they are bytes, which is quicker
    return torch.from_numpy(planes.astype(np.float32) / 255.0)


def image_from_array(path: Path, stored: Array) -> Tensor:
    """A picture that is in memory, `(H, W, 3)` fractions in [0, 1] or bytes, as `(3, H, W)` float32.

    Args:
        path: Where it came from, for messages.
        stored: The numbers.

    Raises:
        SimoError: another shape or range.
    """
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise SimoError(f"{path}: array {stored.shape}, expected a picture (H, W, 3)")
    values = stored.astype(np.float32) / (255.0 if stored.dtype == np.uint8 else 1.0)
    if not (values.min() > -0.001 and values.max() < 1.001):  # what a resampling may leave; a NaN fails too
        raise SimoError(f"{path}: pixels of {values.min():g} to {values.max():g}, expected 0 to 1, or bytes (uint8)")
    return torch.from_numpy(values.clip(0.0, 1.0)).permute(2, 0, 1).contiguous()


def read_ids(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.int64]:
    """The whole numbers of a picture or `.npy` file with one channel, `(H, W)`, for a table to map.

    Args:
        path: The file; of a palette picture, its indices are read.
        size: Height and width that it must have, those of the image; None takes any.

    Raises:
        SimoError: the file is missing, damaged, of another size, or holds fractions or colours.
    """
    stored = _one_channel(path, _load(path, SegmentationLabels(classes=())))
    if size is not None and stored.shape != size:
        raise _size_error(path, stored.shape, size)
    with np.errstate(invalid="ignore"):  # a NaN is no whole number either
        ids = stored.astype(np.int64)
    if (ids != stored).any():
        raise SimoError(f"{path}: fractions occur, expected whole numbers (ids)")
    return ids


def read_labels(
    path: Path, labels: Labels, size: tuple[int, int], mask_path: Path | None = None
) -> tuple[Tensor, Tensor]:
    """The target of one file and the `(H, W)` bool mask of its valid pixels.

    Args:
        path: Picture or `.npy` file.
        labels: What the file holds.
        size: Height and width that it must have, those of the image.
        mask_path: A picture of the same size that is not zero where the label is valid.

    Raises:
        SimoError: the file is missing, damaged, of another size, of another bit depth than described, or
        holds
            a class id out of range, a NaN, or a depth that is not positive.
    """
    return labels_from_array(path, labels, _load(path, labels), size, mask_path)


def labels_from_array(
    path: Path, labels: Labels, stored: Array, size: tuple[int, int], mask_path: Path | None = None
) -> tuple[Tensor, Tensor]:
    """The target and the mask of stored numbers that are in memory, `(H, W)` or `(H, W, C)`, as `read_labels` has them.

    Args:
        path: Where they came from, for messages.
        labels: What they mean.
        stored: The numbers.
        size: Height and width that they must have, those of the image.
        mask_path: A picture of the same size that is not zero where the label is valid.

    Raises:
        SimoError: as `read_labels`, but for what concerns a file.
    """
    if stored.shape[:2] != size:
        raise _size_error(path, stored.shape, size)
    given = np.ones(size, dtype=np.bool_) if mask_path is None else _read_mask(mask_path, size)
    target, valid = _DECODERS[type(labels)](path, labels, stored, given)
    return torch.from_numpy(np.ascontiguousarray(target)), torch.from_numpy(np.ascontiguousarray(valid))


def _size_error(path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> SimoError:
    return SimoError(
        f"{path}: the label is {shape[0]}x{shape[1]} and its image is {size[0]}x{size[1]} "
        "(height x width); expected the same size"
    )


def read_stored(path: Path, labels: Labels) -> Array:
    """The numbers of one label file as they lie there, `(H, W)` or `(H, W, C)`, decoded but not interpreted.

    Raises:
        SimoError: the file is missing, damaged or of another bit depth than described.
    """
    return _load(path, labels)


def _open(path: Path) -> Image.Image:
    """The picture, decoded: a truncated file must fail here, by name, and not give half a picture."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise SimoError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise SimoError(f"{path} cannot be read as a picture: {reason}. Fetch this file again.") from None
    return picture


def _load(path: Path, labels: Labels) -> Array:
    """The stored numbers, (H, W) or (H, W, C)."""
    if path.suffix == ".npy":
        return _load_array(path)
    with _open(path) as picture:
        bits = 16 if picture.mode.startswith("I") else 8 if picture.mode in _EIGHT_BIT else 32
        expected = labels.bits if isinstance(labels, ValueLabels | NormalsLabels) else None
        if expected is not None and bits != expected:
            raise SimoError(
                f"{path}: the file has {bits}-bit values ({picture.mode!r}), expected {expected}-bit ones. "
                "It was probably written, or converted, by a tool that changes the bit depth."
            )
        if isinstance(labels, SegmentationLabels):
            if len(picture.getbands()) > 1:
                raise SimoError(f"{path}: {picture.mode} colours, expected class ids: grey values or a palette")
            return np.array(picture)  # of a palette picture: the indices
        if isinstance(labels, NormalsLabels) or picture.mode == "P":
            picture = picture.convert("RGB")
        return np.array(picture)


def _load_array(path: Path) -> Array:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SimoError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise SimoError(f"{path} cannot be read as a .npy array: {' '.join(str(error).split())}") from None
    if values.ndim not in (2, 3) or values.dtype.kind not in "biuf":
        raise SimoError(f"{path}: {values.dtype} array {values.shape}, expected numbers (H, W) or (H, W, C)")
    return np.asarray(values)


def _read_mask(path: Path, size: tuple[int, int]) -> Mask:
    with _open(path) as picture:
        values = np.array(picture.convert("L") if picture.mode in _EIGHT_BIT else picture)
    if values.shape != size:
        height, width = values.shape[:2]
        raise SimoError(f"{path}: the mask is {height}x{width}, expected {size[0]}x{size[1]} like its image")
    return np.asarray(values != 0)


def _decode_segmentation(path: Path, labels: SegmentationLabels, stored: Array, given: Mask) -> tuple[Array, Mask]:
    ids = _one_channel(path, stored)
    valid = given & ~np.isin(ids, labels.invalid)
    index = np.where(valid, ids, labels.first_class).astype(np.float64) - labels.first_class
    count = len(labels.classes)
    wrong = valid & ~((index >= 0) & (index < count) & (index == np.floor(index)))
    if wrong.any():
        last = labels.first_class + count - 1
        seen = ", ".join(f"{value:g}" for value in np.unique(ids[wrong].astype(np.float64))[:5])
        raise SimoError(
            f"{path}: class ids {seen} occur, expected {labels.first_class} to {last}"
            + (f" or the invalid ids {list(labels.invalid)}" if labels.invalid else "")
            + "; mend first_class, classes or invalid in dataset.yaml, or the file"
        )
    return index.astype(np.int64), valid


def _decode_values(path: Path, labels: ValueLabels, stored: Array, given: Mask, channels: int) -> tuple[Floats, Mask]:
    """(C, H, W) values and their mask; 0 where invalid. A pixel is invalid when all its channels say so."""
    planes = _planes(path, stored, channels)
    missing = np.zeros(planes.shape, dtype=np.bool_)
    for sentinel in labels.invalid:
        missing |= np.isnan(planes) if np.isnan(sentinel) else planes == sentinel
    valid = given & ~missing.all(axis=0)
    values = np.where(valid, planes, 0.0) * labels.scale + np.where(valid, labels.offset, 0.0)
    _check_finite(path, values, "list .nan (or .inf) under invalid in dataset.yaml if it means no label")
    return values, valid


def _decode_depth(path: Path, labels: DepthLabels, stored: Array, given: Mask) -> tuple[Array, Mask]:
    depth, valid = _decode_values(path, labels, stored, given, 1)
    if (depth[0][valid] <= 0).any():
        worst = float(depth[0][valid].min())
        raise SimoError(
            f"{path}: a depth of {worst:g} {labels.unit}, expected positive numbers; "
            "list the stored number under invalid in dataset.yaml if it means no label"
        )
    return depth.astype(np.float32), valid


def _decode_disparity(path: Path, labels: DisparityLabels, stored: Array, given: Mask) -> tuple[Array, Mask]:
    disparity, valid = _decode_values(path, labels, stored, given, 1)
    if (disparity[0][valid] < 0).any():
        worst = float(disparity[0][valid].min())
        raise SimoError(
            f"{path}: a disparity of {worst:g} {labels.unit}, expected numbers from 0; "
            "list the stored number under invalid in dataset.yaml if it means no label"
        )
    return disparity.astype(np.float32), valid


def _decode_regression(path: Path, labels: RegressionLabels, stored: Array, given: Mask) -> tuple[Array, Mask]:
    values, valid = _decode_values(path, labels, stored, given, labels.channels)
    return values.astype(np.float32), valid


def _decode_normals(path: Path, labels: NormalsLabels, stored: Array, given: Mask) -> tuple[Array, Mask]:
    planes = _planes(path, stored, 3)
    valid = given.copy()
    for vector in labels.invalid:
        valid &= ~(planes == np.asarray(vector)[:, None, None]).all(axis=0)
    normals = planes if stored.dtype.kind == "f" else 2.0 * planes / 255.0 - 1.0
    normals = np.where(valid, normals, 0.0)
    _check_finite(path, normals, "write a zero vector where there is no normal")
    length = np.linalg.norm(normals, axis=0)
    valid &= length >= SHORTEST_NORMAL
    channels, signs = labels.channels_and_signs
    turned = normals[list(channels)] * np.asarray(signs)[:, None, None]
    return np.where(valid, turned / np.where(valid, length, 1.0), 0.0).astype(np.float32), valid


_DECODERS: dict[type[Labels], Callable[..., tuple[Array, Mask]]] = {
    SegmentationLabels: _decode_segmentation,
    DepthLabels: _decode_depth,
    DisparityLabels: _decode_disparity,
    NormalsLabels: _decode_normals,
    RegressionLabels: _decode_regression,
}


def _one_channel(path: Path, stored: Array) -> Array:
    if stored.ndim == 3 and stored.shape[2] != 1:
        raise SimoError(f"{path}: {stored.shape[2]} channels, expected 1")
    return stored.reshape(stored.shape[:2])


def _planes(path: Path, stored: Array, channels: int) -> Floats:
    """(H, W) or (H, W, C) numbers -> (C, H, W) float64."""
    values = stored[None] if stored.ndim == 2 else np.moveaxis(stored, 2, 0)
    if values.shape[0] != channels:
        raise SimoError(f"{path}: {values.shape[0]} channels, expected {channels}")
    return np.ascontiguousarray(values).astype(np.float64)  # in this order: bytes are quicker to move


def _check_finite(path: Path, values: Floats, mend: str) -> None:
    if not np.isfinite(values).all():
        raise SimoError(f"{path}: NaN or infinite values, expected finite numbers; {mend}")


def resize_longer_side(image: Tensor, longer_side: int) -> Tensor:
    """Scale an image (3, H, W), proportions kept, so that its longer side has this many pixels."""
    height, width = image.shape[-2:]
    factor = longer_side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    scaled = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].clamp(0, 1)
