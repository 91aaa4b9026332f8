"""Recipes of a grouping are read back as what they should build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.grouping import Grouping, group_tasks
from simo_merge.affinity.recipes import write_grouping
from simo_merge.errors import SimoError
from simo_merge.merging.files import merge_files
from simo_merge.merging.recipes.recipe import read_recipe


@pytest.fixture
def grouping() -> Grouping:
    values = torch.tensor([[1.0, 0.1, 0.8], [0.1, 1.0, 0.2], [0.7, 0.2, 1.0]])
    return group_tasks(AffinityMatrix("made-up", ("seg", "depth", "normals"), values, False, "weights"), 2)


def test_a_recipe_is_written_for_each_encoder_that_is_shared(grouping: Grouping, tmp_path: Path) -> None:
    places = {task: tmp_path / f"{task} files" / "x.safetensors" for task in ("seg", "depth", "normals")}
    for value, place in enumerate(places.values()):
        place.parent.mkdir()
        save_file({"weight": torch.full((2, 2), float(value))}, place)
    write_grouping(tmp_path / "grouping", grouping, places)
    assert sorted(path.name for path in (tmp_path / "grouping").iterdir()) == ["README.md", "encoder-1.yaml"]
    plan = read_recipe(tmp_path / "grouping" / "encoder-1.yaml")
    assert plan.experts == (places["seg"], places["normals"])
    merge_files(plan.base, plan.experts, plan.method, tmp_path / "merged.safetensors")
    assert torch.equal(load_file(tmp_path / "merged.safetensors")["weight"], torch.ones(2, 2))  # of 0 and 2


def test_the_commands_name_every_expert_and_what_is_expected(grouping: Grouping, tmp_path: Path) -> None:
    places = {task: tmp_path / f"my {task}" for task in ("seg", "depth", "normals")}
    write_grouping(tmp_path, grouping, places, "--images 'my photos'")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    merging = f"simo-merge merge '{places['seg']}' '{places['normals']}' --method weight-average -o merged-1"
    assert merging in text
    assert "simo-merge realign merged-1 --images 'my photos' -o aligned-1" in text
    assert f"The expert serves as it is: `{places['depth']}`." in text
    assert "| 1 | seg | 1 | -0.3 |" in text
    assert "Next best, by " in text


def test_a_task_without_its_expert_is_named(grouping: Grouping, tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="no expert is given for normals, depth"):
        write_grouping(tmp_path, grouping, {"seg": "runs/seg"})
