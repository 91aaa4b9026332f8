"""Experts with nothing of their own are told of, by every way to merge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simo_merge.checkpoints import save
from simo_merge.merging import WeightAverage, merge
from simo_merge.merging.duplicates import warn_of_duplicates
from simo_merge.merging.files import merge_files
from simo_merge.merging.files.merge_checkpoints import merge_checkpoints
from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base, load_base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, tiny_expert

Merge = Callable[[Base, list[SingleTaskModel], Path], object]


def in_memory(base: Base, experts: list[SingleTaskModel], folder: Path) -> object:
    return merge(experts, WeightAverage(), base)


def from_checkpoints(base: Base, experts: list[SingleTaskModel], folder: Path) -> object:
    paths = [save(expert, folder / expert.task.name) for expert in experts]
    return merge_checkpoints(paths, WeightAverage(), folder / "merged", base)


def from_files(base: Base, experts: list[SingleTaskModel], folder: Path) -> object:
    paths = [folder / f"{expert.task.name}.safetensors" for expert in experts]
    save_file(base.vit.state_dict(), folder / "base.safetensors")
    for path, expert in zip(paths, experts, strict=True):
        save_file(expert.encoder.vit.state_dict(), path)
    return merge_files(folder / "base.safetensors", paths, WeightAverage(), folder / "out.safetensors")


@pytest.mark.parametrize("way", [in_memory, from_checkpoints, from_files])
def test_an_expert_that_is_the_base_and_one_given_twice_are_named(
    way: Merge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base("test_vit", "random")
    experts = [tiny_expert(task, base, 1) for task in (SEGMENTATION, DEPTH)]  # of one seed
    experts.append(tiny_expert(NORMALS, base, 2, shift=0.0))
    way(base, experts, tmp_path)
    twice, unmoved = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert twice.index("depth") < twice.index("has the same weights as") < twice.index("segmentation")
    assert unmoved.index("normals") < unmoved.index("has the same weights as") < unmoved.index("base")


def test_one_weight_makes_the_difference(caplog: pytest.LogCaptureFixture) -> None:
    base = {"a": torch.ones(3), "b": torch.ones(2), "steps": torch.tensor(1)}
    experts = [copy.deepcopy(base) for _ in range(2)]
    experts[0]["b"][1] += 1e-3
    experts[1]["a"][0] += 1e-3
    warn_of_duplicates(base, experts, ("base", "first", "second"))
    assert not caplog.records


def test_values_are_compared_not_types(caplog: pytest.LogCaptureFixture) -> None:
    base = {"a": torch.tensor([0.5, 2.0])}
    warn_of_duplicates(base, [{"a": base["a"].half()}, {"a": torch.zeros(2)}], ("base", "first", "second"))
    (record,) = caplog.records
    assert record.getMessage().startswith("first has the same weights as base")
