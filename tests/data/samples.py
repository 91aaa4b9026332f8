"""A sample with one task of every kind, for what must hold for all of them."""

from __future__ import annotations

import torch

from simo_merge.data import Sample
from simo_merge.tasks import Depth, Disparity, Normals, Regression, Segmentation, Task

TASKS: dict[str, Task] = {
    "classes": Segmentation(name="classes", classes=("a", "b", "c")),
    "z": Depth(name="z"),
    "d": Disparity(name="d"),
    "n": Normals(name="n"),
    "map": Regression(name="map", channels=2),
}
SIZE = (24, 36)
BASE = 2.0  # disparity times depth


def a_sample(seed: int = 0) -> Sample:
    made = torch.Generator().manual_seed(seed)
    normals = torch.randn(3, *SIZE, generator=made)
    depth = torch.rand(1, *SIZE, generator=made) + 1
    targets = {
        "classes": torch.randint(0, 3, SIZE, generator=made),
        "z": depth,
        "d": BASE / depth,
        "n": normals / normals.norm(dim=0),
        "map": torch.rand(2, *SIZE, generator=made),
    }
    masks = {name: torch.rand(SIZE, generator=made) > 0.3 for name in targets}
    return Sample(torch.rand(3, *SIZE, generator=made), targets, masks, "a")


def assert_equal(one: Sample, other: Sample) -> None:
    assert torch.equal(one.image, other.image)
    assert one.targets.keys() == other.targets.keys() == one.masks.keys() == other.masks.keys()
    for name in one.targets:
        assert torch.equal(one.targets[name], other.targets[name]), name
        assert torch.equal(one.masks[name], other.masks[name]), name
