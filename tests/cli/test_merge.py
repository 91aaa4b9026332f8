"""`merge`: what goes in, how the coefficient is found, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simo_merge.checkpoints import load, load_expert, save
from simo_merge.models import MultiTaskModel
from simo_merge.selection import Selection
from simo_merge.weights import build_vit, fingerprint
from tests.cli.conftest import Program, Refused

BASE = ("--base", "random")


def merged(directory: Path) -> MultiTaskModel:
    model = load(directory)
    assert isinstance(model, MultiTaskModel)
    assert model.merge is not None
    return model


def test_the_merged_model_has_every_task_and_knows_its_experts(made: Path) -> None:
    model = merged(made / "merged")
    assert list(model.tasks) == ["segmentation", "depth", "normals"]
    assert model.encoder_passes == 1
    assert model.merge.method == "task-arithmetic"  # type: ignore[union-attr]
    assert model.merge.parameters == {"scale": 0.3}  # type: ignore[union-attr]
    assert model.merge.experts["depth"]["path"] == str(made / "depth")  # type: ignore[union-attr]


def test_the_scale_is_taken_as_it_is_given(made: Path, program: Program, tmp_path: Path) -> None:
    experts = [made / "depth", made / "normals"]
    assert program("-q", "merge", *experts, "--scale", "0", *BASE, "-o", tmp_path / "zero").status == 0
    zero = merged(tmp_path / "zero")
    assert fingerprint(zero.encoder.vit.state_dict()) == zero.base.sha256  # type: ignore[union-attr]


def test_a_random_base_is_found_again(made: Path, program: Program, tmp_path: Path) -> None:
    experts = [made / "depth", made / "normals"]
    assert program("-q", "merge", *experts, "--scale", "0", "-o", tmp_path / "found").status == 0
    found = merged(tmp_path / "found")
    assert fingerprint(found.encoder.vit.state_dict()) == found.base.sha256  # type: ignore[union-attr]


def test_weight_average_has_no_scale(made: Path, program: Program, refused: Refused, tmp_path: Path) -> None:
    arguments = ["merge", made / "depth", made / "normals", "--method", "weight-average", *BASE]
    assert program("-q", *arguments, "-o", tmp_path / "mean").status == 0
    assert merged(tmp_path / "mean").merge.method == "weight-average"  # type: ignore[union-attr]
    assert "weight-average has none" in refused(*arguments, "--scale", "0.5", "-o", "OUT")


def test_the_seed_is_that_of_a_method_that_draws_unless_it_is_set(made: Path, program: Program, tmp_path: Path) -> None:
    arguments = ["merge", made / "depth", made / "normals", "--method", "dare", *BASE, "--seed", "5"]
    assert program("-q", *arguments, "-o", tmp_path / "given").status == 0
    assert merged(tmp_path / "given").merge.parameters["seed"] == 5  # type: ignore[union-attr]
    assert program("-q", *arguments, "--set", "seed=7", "-o", tmp_path / "set").status == 0
    assert merged(tmp_path / "set").merge.parameters["seed"] == 7  # type: ignore[union-attr]


def test_whole_numbers_may_be_written_with_an_exponent(made: Path, program: Program, tmp_path: Path) -> None:
    arguments = ["merge", made / "depth", made / "normals", "--method", "wudi", "--set", "steps=1e1", *BASE]
    assert program("-q", *arguments, "-o", tmp_path / "steps").status == 0
    assert merged(tmp_path / "steps").merge.parameters["steps"] == 10  # type: ignore[union-attr]


def test_the_precision_is_also_that_of_choosing_the_scale(
    made: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def choose(*args: object, precision: str, **kwargs: object) -> Selection:
        given.append(precision)
        return Selection(0.4, {0.4: 1.0}, "nothing")

    monkeypatch.setattr("simo_merge.cli.scale.select_by_agreement", choose)
    options = ["--scale", "auto", "--images", made / "photos", "--precision", "bfloat16", *BASE]
    assert program("-q", "merge", made / "depth", made / "normals", *options, "-o", tmp_path / "chosen").status == 0
    assert given == ["bfloat16"]


@pytest.mark.parametrize(
    ("choose", "criterion"),
    [
        (["--images", "photos"], "agreement with the experts' features"),
        (["--images", "photos", "--rank", "2"], "agreement with the experts' features after rank 2 surgery"),
        (["--data", "set"], "delta on small (val)"),
    ],
)
def test_auto_chooses_a_scale_and_says_by_what(
    made: Path, program: Program, tmp_path: Path, choose: list[str], criterion: str
) -> None:
    choose[1:2] = [str(made / choose[1])]
    experts = [made / "depth", made / "normals"]
    outcome = program("-q", "merge", *experts, "--scale", "auto", *choose, *BASE, "-o", tmp_path / "merged")
    assert outcome.status == 0
    said = outcome.out.splitlines()[0]
    assert said.endswith(f"chosen by {criterion}")
    assert said.startswith(f"scale {merged(tmp_path / 'merged').merge.parameters['scale']:g}, ")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "mean"], "unknown merge method 'mean'; known: "),
        (["--scale", "much"], "--scale is a number or auto, got 'much'"),
        (["--scale", "nan"], "--scale must be a finite number, got nan"),
        (["--scale", "auto"], "--images DIR (without labels) or --data SPEC"),
        (["--scale", "auto", "--images", "photos", "--data", "rooms"], "--images DIR (without labels) or --data SPEC"),
        (["--scale", "auto", "--data", "rooms", "--split", "test"], "never chosen on the test split"),
        (["--scale", "auto", "--data", "rooms", "--rank", "2"], "--rank judges agreement of features"),
        (["--images", "photos"], "add --scale auto"),
        (["--scale", "0.3", "--data", "rooms"], "add --scale auto"),
        (["--rank", "2"], "add --scale auto"),
        (["--scale", "auto", "--images", "nowhere"], "nowhere is not a folder"),
        (["--scale", "auto", "--images", "photos", "--rank", "0"], "'--rank'"),
        (["--precision", "float12"], "unknown precision 'float12'; known: auto, float32, bfloat16"),
        (["--method", "wudi", "--set", "steps=1.5"], "steps of wudi must be a whole number, 0 or more, got 1.5"),
        (["--device", "banana"], "unknown device 'banana'"),
        (["--base", "package"], "not for test_vit"),
        (["--base", "nowhere.safetensors"], "No weights file at nowhere.safetensors"),
    ],
)
def test_wrong_options_are_refused(made: Path, refused: Refused, options: list[str], said: str) -> None:
    given = [str(made / "photos") if option == "photos" else option for option in options]
    base = [] if "--base" in options else BASE
    assert said in refused("merge", made / "depth", made / "normals", *base, *given, "-o", "OUT")


def test_one_image_is_not_enough_to_judge_after_alignment(made: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes((made / "photos" / "photo-0.jpg").read_bytes())
    options = ["--scale", "auto", "--images", tmp_path / "one", "--rank", "2", *BASE]
    assert "two calibration images" in refused("merge", made / "depth", made / "normals", *options, "-o", "OUT")


def test_experts_that_do_not_belong_together_are_refused(made: Path, refused: Refused) -> None:
    assert "at least two experts, got 1" in refused("merge", made / "depth", *BASE, "-o", "OUT")
    said = refused("merge", made / "depth", made / "normals", made / "depth", *BASE, "-o", "OUT")
    assert "two experts are for the same task: depth" in said
    assert "is a multi-task model" in refused("merge", made / "depth", made / "merged", *BASE, "-o", "OUT")


def test_an_output_that_would_take_an_expert_with_it_is_refused(
    made: Path, copied: Callable[[str], Path], refused: Refused, tmp_path: Path
) -> None:
    expert = copied("depth")
    for output in (expert, tmp_path):
        said = refused("merge", expert, made / "normals", *BASE, "--overwrite", "-o", output)
        assert f"would delete {expert}, which this command reads" in said
    load_expert(expert)


# -- damaged experts --------------------------------------------------------------------------------------------


def truncate(expert: Path) -> None:
    file = expert / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_one_bit(expert: Path) -> None:
    file = expert / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4000] ^= 1
    file.write_bytes(content)


def remove_weights(expert: Path) -> None:
    (expert / "model.safetensors").unlink()


def remove_config(expert: Path) -> None:
    (expert / "config.json").unlink()


def cut_config(expert: Path) -> None:
    file = expert / "config.json"
    file.write_text(file.read_text(encoding="utf-8")[:300], encoding="utf-8")


def set_nan(expert: Path) -> None:
    change_tensors(expert, "encoder.vit.norm.weight", float("nan"))


def change_tensors(expert: Path, name: str, value: float) -> None:
    file = expert / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, file)
    config = json.loads((expert / "config.json").read_text(encoding="utf-8"))
    config["sha256"] = fingerprint(tensors)
    (expert / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "damaged or truncated"),
        (flip_one_bit, "its fingerprint differs"),
        (remove_weights, "is missing; the checkpoint is incomplete"),
        (remove_config, "is no checkpoint: it has no config.json"),
        (cut_config, "config.json is damaged"),
        (set_nan, "holds NaN or infinity in encoder.vit.norm.weight"),
    ],
)
def test_a_damaged_expert_is_refused_by_name(
    made: Path, copied: Callable[[str], Path], refused: Refused, damage: Callable[[Path], None], said: str
) -> None:
    expert = copied("depth")
    damage(expert)
    line = refused("merge", made / "normals", expert, *BASE, "-o", "OUT")
    assert said in line
    assert str(expert) in line


def test_what_is_no_checkpoint_is_refused(made: Path, refused: Refused, tmp_path: Path) -> None:
    assert "does not exist; a checkpoint is a directory" in refused("merge", made / "depth", "nowhere", "-o", "OUT")
    file = tmp_path / "model.pt"
    file.write_bytes(b"")
    assert "model.pt is a file; a checkpoint is a directory" in refused("merge", made / "depth", file, "-o", "OUT")


def test_features_that_overflow_are_told_with_the_expert_and_the_block(
    made: Path, copied: Callable[[str], Path], refused: Refused
) -> None:
    expert = copied("depth")
    change_tensors(expert, "encoder.vit.blocks.0.norm1.weight", 3e38)
    options = ["--scale", "auto", "--images", made / "photos", *BASE]
    said = refused("merge", made / "normals", expert, *options, "-o", "OUT")
    assert "features: depth: what test_vit gives at block 0 holds NaN or infinity" in said


@pytest.fixture
def smaller(made: Path, tmp_path: Path) -> Path:
    """The depth expert with position embeddings for images of 64x96, as an imported model may have them."""
    expert = load_expert(made / "depth")
    vit = build_vit("test_vit", (64, 96))
    positions = vit.state_dict()["pos_embed"]
    vit.load_state_dict(expert.encoder.vit.state_dict() | {"pos_embed": positions})
    expert.encoder.vit, expert.base = vit, None
    return save(expert, tmp_path / "smaller")


@pytest.mark.parametrize(
    "choice", [("--scale", "0.4"), ("--scale", "auto", "--images"), ("--method", "lot", "--images")]
)
def test_another_image_size_is_refused_with_the_option_that_resamples_it(
    made: Path, smaller: Path, program: Program, refused: Refused, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    options = [*choice, *([made / "photos"] if "--images" in choice else [])]
    arguments = ["merge", made / "normals", smaller, *BASE, *options]
    assert "or resample them with --resample-pos-embed" in refused(*arguments, "-o", "OUT")
    assert program("-q", *arguments, "--resample-pos-embed", "-o", tmp_path / "merged").status == 0
    model = merged(tmp_path / "merged")
    assert model.encoder.grid_size == (160, 160)
    with torch.inference_mode():
        assert all(bool(p.isfinite().all()) for p in model(torch.rand(1, 3, 64, 96)).values())
    if "0.4" in choice:  # its experts are still known by what they were
        aligned = ["realign", tmp_path / "merged", "--images", made / "photos", "--rank", 4, "-o", tmp_path / "aligned"]
        assert program("-q", *aligned).status == 0
