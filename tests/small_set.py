"""A data set on disk that is small enough to train on in a test: a floor, a wall, and their depth and normals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = (32, 48)
SPLITS = {"train": 6, "calibration": 6, "val": 3, "test": 3}
TASKS = {
    "segmentation": {"kind": "segmentation", "classes": ["floor", "wall"], "first_class": 1, "invalid": [0]},
    "depth": {"kind": "depth", "scale": 0.001, "bits": 16, "invalid": [0]},
    "normals": {"kind": "normals"},
}
FLOOR, WALL = (0, -1, 0), (0, 0, 1)


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """Noise, with `size` = (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_set(root: Path, splits: Mapping[str, int] = SPLITS, size: tuple[int, int] = SIZE) -> Path:
    """Write a folder data set with every split; the wall ends at another row in each image."""
    tasks = {name: dict(described) for name, described in TASKS.items()}
    root.mkdir(parents=True)
    text = yaml.safe_dump({"name": "small", "tasks": tasks}, sort_keys=False)
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    for folder in ("images", "gt_sets", *TASKS):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        keys = [f"{split}-{i}" for i in range(count)]
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(keys), encoding="utf-8")
        for key in keys:
            _write_sample(root, key, size, rng)
    return root


def _write_sample(root: Path, key: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    height, width = size
    rows = np.arange(height)[:, None] + np.zeros((1, width), dtype=int)
    floor = rows >= rng.integers(height // 3, 2 * height // 3)
    image = np.where(floor[..., None], (140, 100, 60), (200, 200, 220)) + rng.integers(-20, 21, (height, width, 3))
    normals = np.where(floor[..., None], FLOOR, WALL)
    labels = {
        "images": image.astype(np.uint8),
        "segmentation": np.where(floor, 1, 2).astype(np.uint8),
        "depth": (4000 - 60 * rows).astype(np.uint16),
        "normals": ((normals + 1) / 2 * 255).round().astype(np.uint8),
    }
    for folder, values in labels.items():
        Image.fromarray(values).save(root / folder / f"{key}.png")
