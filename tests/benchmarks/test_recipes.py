"""Recipes are checked before anything runs, and parts of splits are what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.parts import open_part, with_options
from bench.recipe_file import RECIPES, read_recipe
from simo_merge.errors import SimoError
from tests.benchmarks.worlds import CLOSED_FORM, write_recipe
from tests.small_set import write_set


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_recipe_is_valid(path: Path, quick: bool) -> None:
    recipe = read_recipe(path, quick)
    assert recipe.name == path.stem
    assert recipe.budget is not None
    assert recipe.samples is not None
    assert recipe.scaling is not None


def test_a_trial_replaces_what_it_names_and_leaves_the_rest() -> None:
    whole, trial = (read_recipe(RECIPES / "rooms.yaml", quick) for quick in (False, True))
    assert trial.training == whole.training | {"decoder_steps": 2, "steps": 6}
    assert trial.data.limit == 16
    assert trial.data.train == whole.data.train
    assert trial.seeds == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocl": "pooled"}, "protocl.*did you mean protocol"),
        ({"data": {"limit": 0}}, "data.limit"),
        ({"data": {"validation": "test"}}, "validation is 'test', the test split"),
        ({"training": {"stesp": 3}}, "stesp.*did you mean steps"),
        ({"training": {"seed": 3}}, "unknown training option"),
        ({"joint": {"training": {"steps": -1}}}, "steps must be 0 or more"),
        ({"joint": {"rows": [{"weighting": "equl"}]}}, "equl"),
        ({"joint": {"rows": [{"weighting": "equal", "align": ["haed"]}]}}, "no re-alignment 'haed'"),
        ({"align_experts": ["haed"]}, "no re-alignment 'haed'.*did you mean head"),
        ({"merges": [{"method": "tise"}]}, "tise.*did you mean ties"),
        ({"merges": [{"method": "ties", "choose": {"density": [2.0]}}]}, "density"),
        ({"merges": [{"method": "ties"}, {"method": "ties"}]}, "ties twice"),
        (
            {"merges": [{"method": "ties", "label": "joint-equal"}]},
            "merges has joint-equal, which another row is called",
        ),
        ({"merges": [{"method": "ties", "label": "experts"}]}, "merges has experts, which another row is called"),
        (
            {"samples": {"align": [CLOSED_FORM, {"method": "head", "label": "surgery-closed-form"}]}},
            "samples.align has",
        ),
        ({"align": [{"method": "surgery", "options": {"rnak": 3}}]}, "rnak"),
        ({"align": [{"method": "surgery", "after": {"method": "head"}}]}, "head is no change inside the encoder"),
        ({"budget": {"merge": "emr"}}, "no merge 'emr'"),
        ({"budget": {"curves": [{"method": "norm-recalibration", "steps": [3]}]}}, "norm-recalibration"),
        ({"samples": {"joint": ["joint-dwa"]}}, "no joint row 'joint-dwa'"),
        (
            {"samples": {"counts": [2], "align": [CLOSED_FORM | {"counts": [2, 3]}]}},
            "surgery-closed-form has the counts 3; they are some of 2",
        ),
        (
            {"align": [CLOSED_FORM | {"counts": [2]}, {"method": "head"}]},
            "the counts 2; they are for the curve alone, `samples.align`",
        ),
        (
            {"samples": {"align": [{"method": "head", "after": {"method": "encoder-norms", "counts": [2]}}]}},
            "counts are those of .*, not of what it comes after",
        ),
        ({"affinity": {"measures": ["ckaa"]}}, "unknown affinity measure.*ckaa"),
        ({"affinity": {"options": {"rnak": 3}}}, "unknown affinity option.*rnak.*did you mean rank"),
        ({"affinity": {"options": {"rank": 0}}}, "rank must be 1 or more"),
        ({"affinity": {"encoders": [2, 4]}}, "3 tasks go into 1 to 3 encoders, got 4"),
        ({"affinity": {"tasks": ["depth", "normals"]}}, "three tasks or more"),
        ({"affinity": {"merge": "emr"}}, "no merge 'emr'"),
        ({"affinity": {"joint": "joint-dwa"}}, "no joint row 'joint-dwa'"),
        ({"protocol": "pooling"}, "pooling"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message) as caught:
        read_recipe(write_recipe(tmp_path / "recipe.yaml", changes))
    assert "recipe.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a", "{", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SimoError, match=r"recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_budget_is_parted_between_the_stages_as_the_recipe_parts_them() -> None:
    recipe = read_recipe(RECIPES / "rooms.yaml")
    config = recipe.joint_config(recipe.weighted("joint-equal"), 3, steps=260)
    assert (config.decoder_steps, config.steps, config.seed) == (52, 208, 3)  # 60 : 240
    assert recipe.joint_config(recipe.weighted("joint-equal-distilled"), 0).distill == 1


def test_a_joint_row_may_have_steps_and_seeds_of_its_own(tmp_path: Path) -> None:
    rows = [{"weighting": "equal"}, {"weighting": "equal", "steps": 3, "seeds": [0, 2]}]
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", {"joint": {"rows": rows}}))
    whole, short = recipe.weighted("joint-equal"), recipe.weighted("joint-equal-3-steps")
    config = recipe.joint_config(short, 0)
    assert (config.decoder_steps, config.steps) == (1, 2)  # 2 : 4
    assert recipe.joint_config(short, 0, steps=6) == recipe.joint_config(whole, 0)
    assert [seed for seed in range(3) if short.trained_with(seed)] == [0, 2]
    assert all(whole.trained_with(seed) for seed in range(3))


def test_a_merge_may_get_some_of_the_re_alignments(tmp_path: Path) -> None:
    merges = [{"method": "weight-average", "align": ["head"]}, {"method": "task-arithmetic"}, {"method": "emr"}]
    changes = {"merges": merges, "budget": None, "samples": None, "scaling": None}
    recipe = read_recipe(write_recipe(tmp_path / "recipe.yaml", changes))
    found = [[align.name for align in recipe.alignments(merge)] for merge in recipe.merges]
    assert found == [["head"], ["surgery-closed-form", "head"], []]
    assert "align" not in recipe.merges[0].model_dump()  # rows stay what they are when a merge gets another
    merges[0]["align"] = ["heads"]
    with pytest.raises(SimoError, match=r"no re-alignment 'heads'; it has surgery-closed-form, head"):
        read_recipe(write_recipe(tmp_path / "recipe.yaml", changes))


# -- parts of splits --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"folder:{write_set(tmp_path_factory.mktemp('set') / 'small', {'train': 10, 'test': 3})}"


def test_two_parts_are_the_whole_and_have_nothing_in_common(spec: str) -> None:
    first, second, whole = (open_part(spec, {}, f"train{part}", ["depth"]) for part in ("[:70%]", "[70%:]", ""))
    assert (len(first), len(second)) == (7, 3)
    assert {*first.keys} | {*second.keys} == {*whole.keys}
    assert not {*first.keys} & {*second.keys}
    assert first.keys != whole.keys[:7]  # not the first ones of the list
    assert first.keys == open_part(spec, {}, "train[:7]", ["depth"]).keys


def test_a_part_hands_out_its_own_images_and_says_which_it_is(spec: str) -> None:
    part = open_part(spec, {}, "train[:70%]", ["depth"], limit=4)
    assert part.split == "train[:70%], 4 images"
    assert [part[i].key for i in range(len(part))] == list(part.keys)
    assert list(part.tasks) == list(part[0].targets) == ["depth"]


@pytest.mark.parametrize("split", ["train[70%]", "train[", "train[:70%", "train[:x]"])
def test_a_part_that_is_not_understood_is_refused(spec: str, split: str) -> None:
    with pytest.raises(SimoError, match="is not understood"):
        open_part(spec, {}, split, ["depth"])


def test_an_empty_part_is_refused(spec: str) -> None:
    with pytest.raises(SimoError, match="is empty: the split has 10 images"):
        open_part(spec, {}, "train[:0]", ["depth"])


def test_what_the_user_states_of_the_data_comes_before_the_recipe() -> None:
    options = {"size": "28x42", "classes": "13"}
    assert with_options("nyuv2:/data", options) == "nyuv2:/data?size=28x42&classes=13"
    assert with_options("nyuv2:/data?size=56x84", options) == "nyuv2:/data?size=56x84&classes=13"
    assert with_options("rooms", {}) == "rooms"


def test_make_runs_every_script_and_each_has_a_trial() -> None:
    root = RECIPES.parents[1]
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:ROOMS_)?BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (root / "benchmarks").glob("*.py")}
    measuring = {name for name in scripts if not name.startswith("draw_")}
    assert sorted(" ".join(listed).split()) == sorted(measuring)
    assert all('"--quick"' in scripts[name] or " parse(" in scripts[name] for name in measuring)
