"""A tiny Cityscapes, written to disk in each of its layouts: the same streets everywhere, with every trap planted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (16, 32)
TRAIN = (
    "aachen/aachen_000000_000019",
    "aachen/aachen_000001_000019",
    "bochum/bochum_000000_000313",
    "zurich/zurich_000121_000019",
)
VAL = ("frankfurt/frankfurt_000001_011835", "munster/munster_000000_000019")
TEST = ("berlin/berlin_000000_000019",)
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}

FULL = TRAIN[0]  # every class but train, every void id, licence plates and every stored disparity that matters
VOID = TRAIN[1]  # not one labelled pixel, not one measurement
ABSENT = 31  # the label id of train: no picture has it

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CATEGORIES = ((7, 8), (11, 12, 13), (17, 19, 20), (21, 22), (23,), (24, 25), (26, 27, 28, 31, 32, 33))
IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)
STORED = (0, 1, 2, 257, 3201, 32257, 65535)  # the first row of disparities of FULL

# uid -> part, as people listed them: a person's torso ... a bus's chassis, and what has no part
PARTS = {
    2400001: 1, 2400002: 2, 2400003: 3, 2400004: 4, 2501201: 1, 2501204: 4,
    2600001: 5, 2600002: 6, 2600003: 7, 2600004: 8, 2699905: 9, 2700102: 6, 2801205: 9,
    2400005: 0, 2400000: 0, 26000: 0, 24: 0, 23: 0, 0: 0, 33003: 0,
}  # fmt: skip


@dataclass(frozen=True)
class Street:
    """What is known of one picture, as the published files hold it."""

    image: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (H, W) uint8: label ids
    uids: np.ndarray  # (H, W) int32: panoptic parts
    stored: np.ndarray  # (H, W) uint16: disparity
    baseline: float
    focal: float


def street(key: str) -> Street:
    """The street of a key: always the same."""
    keys = [name for names in SPLITS.values() for name in names]
    random = np.random.default_rng(100 + keys.index(key))
    present = [label for label in EVALUATED if label != ABSENT]
    image = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    ids = random.choice(present, SIZE).astype(np.uint8)
    uids = random.choice(list(PARTS), SIZE).astype(np.int32)
    stored = random.integers(2, 32257, SIZE).astype(np.uint16)
    if key == FULL:
        ids[0, : len(IGNORED)] = IGNORED
        ids[1, : len(present)] = present
        uids[0, : len(PARTS)] = list(PARTS)
        stored[0, : len(STORED)] = STORED
    if key == VOID:
        ids[:], uids[:], stored[:] = 3, 3, 0
    return Street(image, ids, uids, stored, 0.209313 + keys.index(key) / 100, 2262.52)


def classes(ids: np.ndarray, count: int) -> np.ndarray:
    """Label ids -> class indices, -1 where void; written out slowly."""
    groups = [(label,) for label in EVALUATED] if count == 19 else CATEGORIES
    index = np.full(ids.shape, -1, dtype=np.int64)
    for number, group in enumerate(groups):
        index[np.isin(ids, group)] = number
    return index


def parts(uids: np.ndarray) -> np.ndarray:
    """uids -> indices of parts, by the list above."""
    return np.vectorize(PARTS.get)(np.where(uids == 3, 0, uids)).astype(np.int64)


# -- writers ------------------------------------------------------------------------------------------------------


def write_official(
    root: Path,
    splits: Iterable[str] = ("train", "val"),
    types: Iterable[str] = ("leftImg8bit", "gtFine", "gtFinePanopticParts", "disparity", "camera"),
    apart: bool = False,
) -> Path:
    """The published layout; every type makes its cities in another order, none of them alphabetical.

    Args:
        root: Where.
        splits: Which splits; the labels of test are dummies.
        types: Which folders.
        apart: Unpack each archive into a folder of its own, as auto-lambda has them.
    """
    for turn, kind in enumerate(types):
        base = root / ARCHIVES[kind] / kind if apart else root / kind
        for split in splits:
            if split == "test" and kind == "gtFinePanopticParts":
                continue
            keys = sorted(SPLITS[split], reverse=True)
            for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
                (base / split / key).parent.mkdir(parents=True, exist_ok=True)
                WRITERS[kind](base / split / key, street(key), split == "test")
    return root


def _write_picture(path: Path, seen: Street, dummy: bool) -> None:
    Image.fromarray(seen.image).save(f"{path}_leftImg8bit.png")


def _write_classes(path: Path, seen: Street, dummy: bool) -> None:
    ids = np.full(SIZE, 1, np.uint8) if dummy else seen.ids
    Image.fromarray(ids).save(f"{path}_gtFine_labelIds.png")
    Image.fromarray(np.where(ids == 26, 26000, ids).astype(np.uint16)).save(f"{path}_gtFine_instanceIds.png")
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(f"{path}_gtFine_color.png")
    polygons = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": []}
    Path(f"{path}_gtFine_polygons.json").write_text(json.dumps(polygons), encoding="utf-8")


def _write_parts(path: Path, seen: Street, dummy: bool) -> None:
    Image.fromarray(seen.uids).save(f"{path}_gtFinePanopticParts.tif", compression="tiff_lzw")


def _write_disparity(path: Path, seen: Street, dummy: bool) -> None:
    Image.fromarray(seen.stored).save(f"{path}_disparity.png")


def _write_camera(path: Path, seen: Street, dummy: bool) -> None:
    place = {"pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22}
    lens = {"fx": seen.focal, "fy": 2265.3017905988554, "u0": 1096.98, "v0": 513.137}
    camera = {"extrinsic": {"baseline": seen.baseline, **place}, "intrinsic": lens}
    Path(f"{path}_camera.json").write_text(json.dumps(camera, indent=4), encoding="utf-8")


WRITERS: dict[str, Callable[[Path, Street, bool], None]] = {
    "leftImg8bit": _write_picture,
    "gtFine": _write_classes,
    "gtFinePanopticParts": _write_parts,
    "disparity": _write_disparity,
    "camera": _write_camera,
}
ARCHIVES = {
    "leftImg8bit": "leftImg8bit_trainvaltest",
    "gtFine": "gtFine_trainvaltest",
    "gtFinePanopticParts": "gtFinePanopticParts_trainval",
    "disparity": "disparity_trainvaltest",
    "camera": "camera_trainvaltest",
}


def write_mtan(
    root: Path,
    labels: Iterable[str] = ("label_19", "label_7"),
    parts_folder: bool = True,
    label_dtype: type = np.float64,
    plain_classes: int = 19,
) -> Path:
    """MTAN's arrays. Images are float64, as their printed values suggest; labels come as floats and as integers.

    Args:
        root: Where.
        labels: Folders of labels; `label` has `plain_classes` of them.
        parts_folder: Whether somebody added `part_seg`.
        label_dtype: Of the labels.
        plain_classes: 19 or 7.
    """
    counts = {"label_19": 19, "label_7": 7, "label": plain_classes}
    for split, number, key in numbered():
        seen = street(key)
        arrays = {
            "image": seen.image.astype(np.float64) / 255.0,
            "depth": (seen.stored.astype(np.float32) / np.float32(65535))[..., None],
            **{name: classes(seen.ids, counts[name]).astype(label_dtype) for name in labels},
        }
        if parts_folder:
            arrays["part_seg"] = parts(seen.uids)
        for name, values in arrays.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            np.save(root / split / name / f"{number}.npy", values)
    return root


def write_png(root: Path) -> Path:
    """auto-lambda's pictures: label ids, uids and stored disparities as published, numbers for names."""
    for split, number, key in numbered():
        seen = street(key)
        pictures = {
            f"image/{number}.png": seen.image,
            f"seg/{number}.png": seen.ids,
            f"part_seg/{number}.tif": seen.uids,
            f"depth/{number}.png": seen.stored,
        }
        for name, values in pictures.items():
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / split / name)
    return root


def numbered() -> list[tuple[str, int, str]]:
    """Split, number and key of every picture in the numbered layouts."""
    return [(split, number, key) for split in ("train", "val") for number, key in enumerate(SPLITS[split])]


def damage(path: Path, keep: float = 0.6) -> Path:
    """Cut a file off, as an interrupted download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path
