"""`merge-files` and `export`: weights without models, and the options of every merge method as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from simo_merge.checkpoints import load
from simo_merge.cli.merge_options import parse_settings
from simo_merge.errors import SimoError
from simo_merge.merging import MERGE_METHODS, TaskArithmetic, merge_states
from simo_merge.merging.files import open_state
from simo_merge.models import MultiTaskModel
from simo_merge.weights import build_vit
from tests.cli.conftest import Program, Refused

State = dict[str, Tensor]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A base and two experts, in a folder of their own."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / f"{name}.safetensors" for name in ("base", "seg", "depth")]
    base = {"w": torch.randn(4, 4), "b": torch.randn(4)}
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_file({n: t + 0.1 * seed * torch.randn(t.shape) for n, t in base.items()}, path)
    return paths


def merged_in_memory(files: list[Path], scale: float) -> State:
    base, *experts = (load_file(path) for path in files)
    return merge_states(base, experts, TaskArithmetic(scale)).shared


def same(path: Path, expected: State) -> bool:
    found = load_file(path)
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def test_files_merge_with_options(files: list[Path], program: Program, tmp_path: Path) -> None:
    base, *experts = files
    outcome = program(
        "-q", "merge-files", *experts, "--base", base, "--set", "scale=0.4", "-o", tmp_path / "o.safetensors"
    )
    assert (outcome.status, outcome.err) == (0, "")
    assert "merged weights" in outcome.out
    assert same(tmp_path / "o.safetensors", merged_in_memory(files, 0.4))


def test_a_recipe_says_all_of_it(files: list[Path], program: Program, tmp_path: Path) -> None:
    recipe = files[0].parent / "recipe.yaml"
    models = [{"model": path.name, "parameters": {"weight": 0.5}} for path in files[1:]]
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "base.safetensors",
        "models": models,
        "dtype": "float16",
    }
    recipe.write_text(yaml.safe_dump(content))
    assert program("-q", "merge-files", recipe, "-o", tmp_path / "o").status == 0
    expected = {name: tensor.half() for name, tensor in merged_in_memory(files, 0.5).items()}
    assert same(tmp_path / "o" / "model.safetensors", expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--base, or a recipe"),
        (["--base", "BASE", "--method", "mean"], "unknown merge method 'mean'; known: "),
        (["--base", "BASE", "--set", "scale"], "--set takes NAME=VALUE, got 'scale'"),
        (["--base", "BASE", "--set", "scale=1", "--set", "scale=2"], "gives scale twice"),
        (["--base", "BASE", "--set", "density=1"], "task-arithmetic has no option density; its options are scale"),
        (["--base", "BASE", "--set", "scale=["], "is no value"),
        (["--base", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--base", "BASE", "--shard-size", "tiny"], "is no size"),
        (["--base", "BASE", "--pos-embed-grid", "9"], "a size is HEIGHTxWIDTH"),
        (["--base", "BASE", "--pos-embed-grid", "9x12"], "add --resample-pos-embed"),
        (["--base", "BASE", "--dtype", "int4"], "unknown output type 'int4'"),
        (["--base", "BASE", "--device", "banana"], "unknown device"),
        (["--base", "BASE", "--method", "regmean"], "regmean learns from images"),
    ],
)
def test_wrong_options_of_merge_files_are_refused(
    files: list[Path], refused: Refused, options: list[str], said: str
) -> None:
    given = [str(files[0]) if option == "BASE" else option for option in options]
    assert said in refused("merge-files", *files[1:], *given, "-o", "OUT")


def test_a_recipe_and_options_contradict_each_other(files: list[Path], refused: Refused) -> None:
    recipe = files[0].parent / "recipe.yaml"
    recipe.write_text("merge_method: linear")
    assert "a recipe says all of it" in refused("merge-files", recipe, "--base", files[0], "-o", "OUT")
    assert "models: Field required" in refused("merge-files", recipe, "-o", "OUT")


def test_an_output_that_would_take_its_inputs_along_is_refused(files: list[Path], refused: Refused) -> None:
    folder = files[0].parent
    recipe = folder / "recipe.yaml"
    recipe.write_text("merge_method: linear")
    assert "would delete the recipe" in refused("merge-files", recipe, "-o", folder, "--overwrite")
    said = refused("merge-files", *files[1:], "--base", files[0], "-o", folder, "--overwrite")
    assert f"would delete {files[0]}, which is to be merged" in said
    assert all(path.is_file() for path in (recipe, *files))


def test_settings_are_what_they_look_like() -> None:
    given = ["a=0.5", "b=1e-5", "c=true", "d=mean", "e=[0.2, 0.4]", "f=", "g=x=y", "h=3"]
    expected = {"a": 0.5, "b": 1e-5, "c": True, "d": "mean", "e": [0.2, 0.4], "f": None, "g": "x=y", "h": 3}
    assert parse_settings(given) == expected
    with pytest.raises(SimoError, match="NAME=VALUE"):
        parse_settings(["=1"])


@pytest.mark.parametrize("command", ["merge", "merge-files"])
def test_every_method_is_listed_with_its_options_and_needs(program: Program, command: str) -> None:
    outcome = program(command, "--list-methods")
    assert outcome.status == 0
    for name in MERGE_METHODS:
        assert f"\n{name}: " in f"\n{outcome.out}"
    assert "density=0.2" in outcome.out
    assert "needs images" in outcome.out
    assert "one encoder pass a task" in outcome.out


@pytest.mark.parametrize("model", ["merged", "aligned", "depth"])
def test_an_exported_encoder_loads_into_timm_strictly(made: Path, program: Program, tmp_path: Path, model: str) -> None:
    file = tmp_path / "encoder.safetensors"
    assert program("-q", "export", made / model, "-o", file).status == 0
    encoder = load(made / model).encoder
    vit = build_vit("test_vit", encoder.grid_size)
    vit.load_state_dict(load_file(file), strict=True)
    expected = encoder.vit.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vit.state_dict().items())


def test_what_cannot_be_exported_is_refused(made: Path, refused: Refused, tmp_path: Path) -> None:
    assert "is no directory" in refused("export", "nowhere", "-o", "x.safetensors")
    assert "must be named x.safetensors" in refused("export", made / "merged", "-o", "OUT")
    (tmp_path / "x.safetensors").write_text("mine")
    assert "pass --overwrite" in refused("export", made / "merged", "-o", tmp_path / "x.safetensors")


# -- the same options of `merge` --------------------------------------------------------------------------------

BASE = ("--base", "random")


def merged(path: Path) -> MultiTaskModel:
    model = load(path)
    assert isinstance(model, MultiTaskModel)
    return model


def test_merge_takes_the_options_of_any_method(made: Path, program: Program, tmp_path: Path) -> None:
    experts = [made / "depth", made / "normals"]
    options = ["--method", "ties", "--set", "density=0.5", "--set", "trim=per_tensor", "--scale", "0.7"]
    assert program("-q", "merge", *experts, *options, *BASE, "-o", tmp_path / "ties").status == 0
    record = merged(tmp_path / "ties").merge
    assert record is not None
    assert record.method == "ties"
    expected = {"density": 0.5, "trim": "per_tensor", "scale": 0.7}
    assert {name: record.parameters[name] for name in expected} == expected


def test_a_method_with_encoders_of_its_own_for_every_task_says_its_passes(
    made: Path, program: Program, tmp_path: Path
) -> None:
    experts = [made / "depth", made / "normals"]
    assert program("-q", "merge", *experts, "--method", "emr", *BASE, "-o", tmp_path / "emr").status == 0
    assert merged(tmp_path / "emr").encoder_passes == 2


def test_an_encoder_of_one_task_alone_is_exported_by_its_name(
    made: Path, program: Program, refused: Refused, tmp_path: Path
) -> None:
    experts = [made / "depth", made / "normals"]
    assert program("-q", "merge", *experts, "--method", "emr", *BASE, "-o", tmp_path / "emr").status == 0
    file = tmp_path / "depth.safetensors"
    assert program("-q", "export", tmp_path / "emr", "--task", "depth", "-o", file).status == 0
    assert same(file, dict(merged(tmp_path / "emr").task_encoders["depth"].vit.state_dict()))
    for options in ([], ["--task", "rain"]):
        said = refused("export", tmp_path / "emr", *options, "-o", tmp_path / "refused.safetensors")
        assert "an encoder of its own for each of depth, normals" in said
    with pytest.raises(SimoError, match="export --task NAME"):
        open_state(tmp_path / "emr")
    said = refused("export", made / "merged", "--task", "depth", "-o", tmp_path / "refused.safetensors")
    assert "no encoder for depth alone" in said


def test_a_method_that_learns_from_images_takes_them(made: Path, program: Program, tmp_path: Path) -> None:
    experts = [made / "depth", made / "normals"]
    for source in (["--images", made / "photos"], ["--data", f"folder:{made / 'set'}"]):
        output = tmp_path / source[0].strip("-")
        assert program("-q", "merge", *experts, "--method", "regmean", *source, *BASE, "-o", output).status == 0
        assert merged(output).merge.method == "regmean"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "regmean"], "regmean learns from images; give --images DIR, or --data SPEC"),
        (["--method", "regmean", "--images", "photos", "--rank", "2"], "--rank is for choosing the coefficient"),
        (["--method", "ties", "--images", "photos"], "add --scale auto"),
        (["--method", "ties", "--scale", "auto", "--images", "photos"], "coefficient of task-arithmetic"),
        (["--scale", "0.3", "--set", "scale=0.3"], "are one thing"),
        (["--set", "density=0.3"], "task-arithmetic has no option density"),
        (["--method", "ties", "--set", "density=2"], "density"),
        (["--method", "ties", "--set", "density=much"], "density"),
    ],
)
def test_options_that_do_not_fit_the_method_are_refused(
    made: Path, refused: Refused, options: list[str], said: str
) -> None:
    given = [str(made / "photos") if option == "photos" else option for option in options]
    assert said in refused("merge", made / "depth", made / "normals", *BASE, *given, "-o", "OUT")
