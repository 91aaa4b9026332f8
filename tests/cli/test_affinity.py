"""`affinity`: from weights, from pictures, from labels; what it writes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simo_merge.affinity import MEASURES, AffinityMatrix
from simo_merge.affinity.grouping import group_tasks
from simo_merge.merging.recipes.recipe import read_recipe
from tests.cli.conftest import ENCODER, SHORT, TASKS, Program, Refused

BASE = ("--base", "random")


@pytest.fixture
def experts(made: Path) -> list[Path]:
    return [made / task for task in TASKS]


def values(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "affinity.json").read_text(encoding="utf-8"))
    return record


def names(needs: str) -> set[str]:
    return {name for name, measure in MEASURES.items() if measure.needs == needs}


def test_weights_alone_are_enough(experts: list[Path], program: Program, tmp_path: Path) -> None:
    outcome = program("-q", "affinity", *experts, *BASE, "-o", tmp_path / "out")
    assert outcome.status == 0, outcome
    record = values(tmp_path / "out")
    assert set(record["measures"]) == names("weights")
    assert record["groupings"][0]["measure"] == "task-vector-cosine"
    assert len(record["groupings"][0]["groups"]) <= 2
    assert "encoders, by task-vector-cosine: " in outcome.out
    for name in names("weights"):
        assert f"\n{name} " in outcome.out
        assert (tmp_path / "out" / "tables" / f"{name}.csv").is_file()
        assert (tmp_path / "out" / "pictures" / f"{name}.png").is_file()


def test_pictures_add_measures_of_features_and_decide(
    made: Path, experts: list[Path], program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    outcome = program("-q", "affinity", *experts, *BASE, "--images", made / "photos", "-o", output)
    assert outcome.status == 0, outcome
    record = values(output)
    assert set(record["measures"]) == names("weights") | names("images")
    assert record["groupings"][0]["measure"] == "realigned-features"
    assert "realign merged-1 --images " in (output / "grouping" / "README.md").read_text(encoding="utf-8")


def test_labels_add_the_sweep_and_its_curves(data: str, experts: list[Path], program: Program, tmp_path: Path) -> None:
    output = tmp_path / "out"
    measures = ["--measures", "transfer,lambda-sweep", "--measures", "task-vector-cosine"]
    options = ["--decide", "lambda-sweep", "--groups", 3, "--prefer", "depth=2", "--data", data]
    outcome = program("-q", "affinity", *experts, *BASE, *measures, *options, "-o", output)
    assert outcome.status == 0, outcome
    record = values(output)
    assert list(record["measures"]) == ["task-vector-cosine", "transfer", "lambda-sweep"]
    assert record["sweep"]["split"] == "val"
    assert (output / "pictures" / "lambda-curves.svg").is_file()
    grouping = record["groupings"][0]
    assert grouping["weights"] == {"segmentation": 1.0, "depth": 2.0, "normals": 1.0}
    matrix = AffinityMatrix.from_json(record["measures"]["lambda-sweep"])
    assert grouping == group_tasks(matrix, 3, {"depth": 2.0}).to_json()


def test_of_a_data_set_the_pictures_alone_may_be_looked_at(
    data: str, experts: list[Path], program: Program, tmp_path: Path
) -> None:
    options = ["--data", data, "--split", "test", "--no-labels", "--measures", "cka"]
    outcome = program("-q", "affinity", *experts, *BASE, *options, "-o", tmp_path / "out")
    assert outcome.status == 0, outcome
    assert values(tmp_path / "out")["measures"]["cka"]["labels"] == 0


def test_the_recipes_build_what_was_chosen(
    experts: list[Path], program: Program, refused: Refused, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert program("-q", "affinity", *experts, *BASE, "--groups", 1, "-o", output).status == 0
    recipe = output / "grouping" / "encoder-1.yaml"
    assert read_recipe(recipe).experts == tuple(experts)
    built, file = tmp_path / "built.safetensors", tmp_path / "merged.safetensors"
    assert program("-q", "merge-files", recipe, "-o", built).status == 0
    assert program("-q", "merge", *experts, "--method", "weight-average", *BASE, "-o", tmp_path / "merged").status == 0
    assert program("-q", "export", tmp_path / "merged", "-o", file).status == 0
    whole, alone = load_file(file), load_file(built)
    assert whole.keys() == alone.keys()
    assert all(torch.allclose(whole[name], alone[name], atol=1e-6) for name in whole)
    mistaken = refused("merge-files", "--base", experts[0], *experts, "-o", tmp_path / "refused.safetensors")
    assert "is not the base that" in mistaken  # an expert stands in for it in a mean alone
    commands = (output / "grouping" / "README.md").read_text(encoding="utf-8")
    assert f"simo-merge merge {' '.join(map(str, experts))} --method weight-average -o merged-1" in commands


def test_two_experts_have_one_encoder_unless_told(experts: list[Path], program: Program, tmp_path: Path) -> None:
    assert program("-q", "affinity", *experts[:2], *BASE, "-o", tmp_path / "out").status == 0
    assert values(tmp_path / "out")["groupings"][0]["groups"] == [["segmentation", "depth"]]


def test_an_output_is_replaced_only_when_told_and_only_if_it_is_ours(
    experts: list[Path], program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    short = ["-q", "affinity", *experts, *BASE, "--measures", "norm-ratio", "-o", output]
    assert program(*short).status == 0
    assert "exists and is not empty; choose another or pass --overwrite" in program(*short).err
    assert program(*short, "--overwrite").status == 0
    (output / "thesis.tex").write_text("mine", encoding="utf-8")
    assert "files in" in program(*short, "--overwrite").err
    assert (output / "thesis.tex").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--groups", "0"], "3 tasks go into 1 to 3 encoders, got 0"),
        (["--groups", "4"], "3 tasks go into 1 to 3 encoders, got 4"),
        (["--prefer", "depth"], "--prefer takes TASK=WEIGHT, as depth=2; got 'depth'"),
        (["--prefer", "depth=2", "--prefer", "depth=3"], "--prefer gives depth twice"),
        (["--prefer", "dept=2"], "a weight for dept, which is no task here; did you mean depth?"),
        (["--prefer", "depth=-1"], "the weight of depth is -1.0, expected a positive number"),
        (["--measures", "ckaa"], "unknown measure(s) ckaa; known: task-vector-cosine"),
        (["--measures", ","], "unknown measure(s) (none given); known: "),
        (["--measures", "cka"], "cka needs pictures: give --images DIR"),
        (["--measures", "transfer", "--images", "photos"], "transfer needs labels: give --data SPEC"),
        (["--decide", "cka"], "--decide cka is not among what is measured: task-vector-cosine"),
        (["--data", "set", "--split", "test"], "labels of the test split are for the last word only"),
        (["--data", "nowhere"], "neither a folder nor one of the known formats"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--no-labels"], "--no-labels is for --data"),
    ],
)
def test_wrong_options_are_refused(
    made: Path, experts: list[Path], refused: Refused, options: list[str], said: str
) -> None:
    places = {"photos": str(made / "photos"), "set": f"folder:{made / 'set'}"}
    given = [places.get(option, option) for option in options]
    assert said in refused("affinity", *experts, *BASE, *given, "-o", "OUT")


def test_experts_that_do_not_belong_together_are_refused(
    made: Path, data: str, experts: list[Path], program: Program, refused: Refused, tmp_path: Path
) -> None:
    assert "give two experts or more, got 1" in refused("affinity", experts[0], "-o", "OUT")
    assert "two experts are for the same task: depth" in refused(
        "affinity", made / "depth", made / "depth", "-o", "OUT"
    )
    assert "multi-task" in refused("affinity", made / "merged", made / "depth", "-o", "OUT")
    other = Path(shutil.copytree(made / "normals", tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config["base"]["sha256"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = refused("affinity", made / "depth", other, "-o", "OUT")
    assert "different base" in said
    assert program("-q", "train", "--task", "depth", "--data", data, *ENCODER, *SHORT, "-o", other).status == 2
