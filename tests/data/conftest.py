"""Small data sets on disk, written by the test that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

Write = Callable[..., Path]

TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {"kind": "segmentation", "classes": ["floor", "wall"], "first_class": 1, "invalid": [0]},
    "depth": {"kind": "depth", "scale": 0.001, "bits": 16},
    "normals": {"kind": "normals"},
}


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a data set of keys -> {task: array}; every image is grey and 4 x 6 pixels."""

    def writer(
        samples: dict[str, dict[str, np.ndarray]],
        tasks: dict[str, dict[str, Any]] | None = None,
        **more: Any,
    ) -> Path:
        root = tmp_path / "set"
        described = TASKS if tasks is None else tasks
        used = {name: described[name] for name in described if any(name in s for s in samples.values())}
        for key, labels in samples.items():
            save(root / "images" / f"{key}.png", np.full((4, 6, 3), 100, np.uint8))
            for name, values in labels.items():
                folder, suffix = used[name].get("folder", name), used[name].get("suffix", ".png")
                save(root / folder / f"{key}{suffix}", values)
        text = yaml.safe_dump({"name": "tiny", "tasks": used, **more})
        (root / "dataset.yaml").write_text(text, encoding="utf-8")
        return root

    return writer


@pytest.fixture
def split() -> Callable[[Path, str, list[str]], None]:
    def writer(root: Path, name: str, keys: list[str]) -> None:
        (root / "gt_sets").mkdir(exist_ok=True)
        (root / "gt_sets" / f"{name}.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")

    return writer
