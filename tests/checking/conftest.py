"""Real samples of the rooms, as they are and with a mistake planted; small folder data sets made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from simo_merge.checking import Finding, Findings, check_dataset
from simo_merge.data import DenseDataset, Sample, rooms
from simo_merge.tasks import Task

SPLIT = "val"
STEP = 2  # every second image, 30 of them: all 13 classes occur

Change = Callable[[Sample, int], Sample]


class Listed:
    """Samples in memory under a data set's name."""

    def __init__(
        self, samples: Sequence[Sample], tasks: Mapping[str, Task], name: str = "rooms", published: int | None = None
    ) -> None:
        self.name = name
        self.split = SPLIT
        self.tasks = dict(tasks)
        self.samples = list(samples)
        self.keys = tuple(sample.key for sample in samples)
        self.published = published

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def changed(self, change: Change) -> Listed:
        """The same with every sample changed; changes get the sample and its place."""
        samples = [change(sample, place) for place, sample in enumerate(self.samples)]
        return Listed(samples, self.tasks, self.name, self.published)

    def of(self, *tasks: str) -> Listed:
        """The same with fewer tasks."""
        kept = [
            replace(s, targets={n: s.targets[n] for n in tasks}, masks={n: s.masks[n] for n in tasks})
            for s in self.samples
        ]
        return Listed(kept, {name: self.tasks[name] for name in tasks}, self.name, self.published)

    def first(self, count: int) -> Listed:
        """The same with fewer images."""
        return Listed(self.samples[:count], self.tasks, self.name, self.published)


def with_target(sample: Sample, name: str, target: torch.Tensor, mask: torch.Tensor | None = None) -> Sample:
    masks = sample.masks if mask is None else {**sample.masks, name: mask}
    return replace(sample, targets={**sample.targets, name: target}, masks=masks)


@pytest.fixture(scope="session")
def everything() -> Listed:
    dataset = rooms(SPLIT)
    return Listed([dataset[index] for index in range(0, len(dataset), STEP)], dataset.tasks)


@pytest.fixture
def sound(everything: Listed) -> Listed:
    """30 rooms with segmentation, depth and normals."""
    return Listed(everything.samples, everything.tasks)


Failure = Callable[..., Finding]


@pytest.fixture
def failure() -> Failure:
    """Checks a data set, and returns the one finding with this code, of this level."""

    def check(dataset: DenseDataset, code: str, level: str = "failure", **options: Any) -> Finding:
        findings = check_dataset(dataset, **options)
        found = [finding for finding in findings.findings if finding.code == code]
        assert len(found) == 1, codes(findings)
        assert found[0].level == level
        assert findings.sound == (not findings.of("failure"))
        return found[0]

    return check


def codes(findings: Findings) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.code, finding.task) for finding in findings.findings]


DESCRIBED: dict[str, dict[str, Any]] = {
    "segmentation": {"kind": "segmentation", "first_class": 1, "invalid": [0]},
    "depth": {"kind": "depth", "scale": 0.001, "bits": 16, "invalid": [0]},
    "normals": {"kind": "normals"},
}

WriteRooms = Callable[..., Path]


@pytest.fixture
def write_rooms(tmp_path: Path, everything: Listed) -> WriteRooms:
    """Writes rooms as a folder data set; `changes` maps a task to what is done to its numbers before they are saved."""

    def write(
        count: int = 3,
        changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        splits: Mapping[str, Sequence[str]] | None = None,
        **described: Any,
    ) -> Path:
        root = tmp_path / "set"
        classes = list(everything.tasks["segmentation"].classes)
        tasks = {name: {**values, **described.get(name, {})} for name, values in DESCRIBED.items()}
        tasks["segmentation"]["classes"] = described.get("classes", classes)
        root.mkdir()
        (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "mine", "tasks": tasks}), encoding="utf-8")
        for sample in everything.samples[:count]:
            labels = {
                "images": (sample.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8),
                "segmentation": (sample.targets["segmentation"].numpy() + 1).astype(np.uint8),
                "depth": (sample.targets["depth"][0].numpy() * 1000).round().astype(np.uint16),
                "normals": ((sample.targets["normals"].permute(1, 2, 0).numpy() + 1) / 2 * 255)
                .round()
                .astype(np.uint8),
            }
            for folder, values in labels.items():
                numbers = (changes or {}).get(folder, lambda same: same)(values)
                path = root / folder / f"{sample.key}{tasks.get(folder, {}).get('suffix', '.png')}"
                path.parent.mkdir(exist_ok=True)
                if path.suffix == ".npy":
                    np.save(path, numbers)
                else:
                    Image.fromarray(numbers).save(path)
        for name, keys in (splits or {}).items():
            (root / "gt_sets").mkdir(exist_ok=True)
            (root / "gt_sets" / f"{name}.txt").write_text("\n".join(keys), encoding="utf-8")
        return root

    return write
