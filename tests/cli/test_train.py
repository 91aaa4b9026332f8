"""`train` and `import`: an expert from a data set, or from another library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file

from simo_merge.checkpoints import load_expert, model_fingerprint
from tests.cli.conftest import ENCODER, SHORT, Program, Refused


def test_an_expert_is_trained_and_says_where_it_is(made: Path, data: str, program: Program, tmp_path: Path) -> None:
    output = tmp_path / "expert"
    outcome = program("train", "--task", "depth", "--data", data, *ENCODER, *SHORT, "--seed", 1, "-o", output)
    assert outcome.status == 0
    assert outcome.out.startswith(f"expert for depth: {output}")
    expert = load_expert(output)
    assert expert.task.name == "depth"
    assert expert.provenance["recipe"]["training"]["seed"] == 1
    assert expert.provenance["image_size"] == [32, 48]


def test_a_recipe_that_was_trained_is_not_trained_again(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    outcome = program("train", "--task", "depth", "--data", data, *ENCODER, *SHORT, "-o", tmp_path / "again")
    assert "taken from the cache" in outcome.err
    assert model_fingerprint(load_expert(tmp_path / "again")) == model_fingerprint(load_expert(made / "depth"))


def test_random_weights_are_one_base_in_every_run(made: Path) -> None:
    bases = {load_expert(made / task).base for task in ("segmentation", "depth", "normals")}
    assert len(bases) == 1


def test_the_validation_split_is_told(made: Path, data: str, program: Program, tmp_path: Path) -> None:
    arguments = ["train", "--task", "depth", "--data", data, *ENCODER, *SHORT, "--seed", 2, "--val-split", "val"]
    outcome = program(*arguments, "-o", tmp_path / "expert")
    assert outcome.err.count("on val: abs ") == 2  # after each stage


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--task": "smell"}, "no task smell; it has segmentation, depth, normals"),
        ({"--encoder": "vit_nope"}, "knows no model named 'vit_nope'"),
        ({"--encoder": "resnet18"}, "not a plain ViT"),
        ({"--decoder": "unet"}, "unknown decoder 'unet'; known: dpt, linear"),
        ({"--weights": "nowhere.safetensors"}, "No weights file at nowhere.safetensors"),
        ({"--weights": "package"}, "not for test_vit"),
        ({"--data": "roooms"}, "'roooms' is neither a folder nor one of the known formats"),
        ({"--data": "rooms:/nowhere"}, "rooms data set was not found in /nowhere"),
        ({"--split": "gone"}, "the splits there are: calibration, test, train, val"),
        ({"--val-split": "gone"}, "the splits there are: calibration, test, train, val"),
        ({"--augment": "cutmix"}, "unknown augmentation 'cutmix'; known: default, mtan, simo, none"),
        ({"--precision": "half"}, "unknown precision 'half'; known: auto, float32, bfloat16"),
        ({"--device": "banana"}, "unknown device 'banana'"),
        ({"--steps": "0", "--decoder-steps": "0"}, "not both 0"),
        ({"--decoder-lr": "0"}, "decoder_lr must be positive"),
        ({"--decoder-lr": "1e30", "--encoder-lr": "1e30"}, "lower encoder_lr and decoder_lr"),
    ],
)
def test_wrong_arguments_are_refused(
    made: Path, data: str, refused: Refused, change: dict[str, str], said: str
) -> None:
    options = {"--task": "depth", "--data": data, "--encoder": "test_vit", "--weights": "random"}
    options |= dict(zip(SHORT[::2], SHORT[1::2], strict=True)) | change
    assert said in refused("train", *(part for option in options.items() for part in option), "-o", "OUT")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(refused: Refused) -> None:
    assert "no CUDA GPU; use cpu" in refused(
        "train", "--task", "depth", "--data", "none", "--device", "cuda", "-o", "OUT"
    )


def test_an_output_that_holds_something_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    said = refused("train", "--task", "depth", "--data", "none", "-o", tmp_path)
    assert "exists and is not empty; choose another or pass --overwrite" in said


def test_an_output_that_cannot_be_written_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    said = refused("train", "--task", "depth", "--data", "none", "-o", tmp_path / "file" / "expert")
    assert "no folder that you may write to" in said


# -- import -----------------------------------------------------------------------------------------------------


def save_dpt(path: Path, classes: int = 1, activation: str | None = None) -> Path:
    model = smp.DPT(
        "tu-test_vit",
        encoder_weights=None,
        classes=classes,
        activation=activation,
        decoder_intermediate_channels=(4, 4, 4, 4),
        decoder_fusion_channels=4,
        dynamic_img_size=True,
    )
    model.save_pretrained(str(path))
    return path


def test_a_model_of_smp_becomes_an_expert_that_merges_with_others(data: str, program: Program, tmp_path: Path) -> None:
    for task, classes in (("depth", 1), ("normals", 3)):
        model = save_dpt(tmp_path / f"smp-{task}", classes)
        outcome = program("import", model, "--task", task, "--data", data, "-o", tmp_path / task)
        assert (outcome.status, outcome.out) == (0, f"expert for {task}: {tmp_path / task}\n")
    merging = ["merge", tmp_path / "depth", tmp_path / "normals"]
    assert "give the base (--base)" in program("-q", *merging, "-o", tmp_path / "merged").err
    assert program("-q", *merging, "--base", "random", "-o", tmp_path / "merged").status == 0


def test_what_is_no_dpt_of_that_task_is_not_imported(made: Path, data: str, refused: Refused, tmp_path: Path) -> None:
    model = save_dpt(tmp_path / "dpt")
    smp.Unet("resnet18", encoder_weights=None).save_pretrained(str(tmp_path / "unet"))
    task = ("--task", "depth", "--data", data, "-o", "OUT")
    assert "only smp's DPT" in refused("import", tmp_path / "unet", *task)
    assert "1 output channels" in refused("import", model, "--task", "normals", "--data", data, "-o", "OUT")
    assert "no task smell" in refused("import", model, "--task", "smell", "--data", data, "-o", "OUT")
    assert "applies an activation" in refused("import", save_dpt(tmp_path / "sigmoid", 1, "sigmoid"), *task)
    assert "checkpoint of simo_merge already" in refused("import", made / "depth", *task)
    assert "simo-merge import" in refused("inspect", model)
    os.truncate(model / "model.safetensors", 1000)
    assert "the smp model cannot be read" in refused("import", model, *task)


# -- experts of a base from a file ------------------------------------------------------------------------------


def test_experts_of_a_local_file_merge_when_the_file_is_given(
    made: Path, data: str, program: Program, refused: Refused, tmp_path: Path
) -> None:
    tensors = load_file(made / "depth" / "model.safetensors")
    mine = tmp_path / "mine.safetensors"
    prefix = "encoder.vit."
    save_file({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, mine)
    for task in ("depth", "normals"):
        arguments = ["--task", task, "--data", data, "--encoder", "test_vit", "--weights", mine]
        assert program("-q", "train", *arguments, *SHORT, "-o", tmp_path / task).status == 0
    experts = [tmp_path / "depth", tmp_path / "normals"]
    assert "local file (mine.safetensors" in refused("merge", *experts, "-o", "OUT")
    assert program("-q", "merge", *experts, "--base", mine, "-o", tmp_path / "merged").status == 0
    said = refused("merge", tmp_path / "depth", made / "normals", "-o", "OUT")
    assert "different bases: test_vit (file:mine.safetensors" in said
    assert "and test_vit (random" in said
