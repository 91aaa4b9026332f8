"""`predict` and `inspect`: pictures and values of a model, and what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.checkpoints import load
from simo_merge.data import read_image
from tests.cli.conftest import Program, Refused
from tests.cli.test_merge import change_tensors
from tests.small_set import write_picture


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_picture_has_a_png_a_task_and_the_values(made: Path, program: Program, tmp_path: Path) -> None:
    photo = made / "photos" / "photo-0.jpg"
    outcome = program("-q", "predict", made / "aligned", photo, "-o", tmp_path / "out")
    assert (outcome.status, outcome.out) == (0, f"predictions for 1 picture: {tmp_path / 'out'}\n")
    tasks = ("depth", "normals", "segmentation")
    assert names(tmp_path / "out") == sorted(["photo-0.npz", *(f"photo-0.{task}.png" for task in tasks)])
    with torch.inference_mode():
        expected = load(made / "aligned")(read_image(photo)[None])
    values = np.load(tmp_path / "out" / "photo-0.npz")
    assert sorted(values) == sorted(tasks)
    np.testing.assert_allclose(values["depth"], expected["depth"][0], rtol=1e-4)
    assert (values["segmentation"] == expected["segmentation"][0].argmax(0).numpy()).all()
    assert values["segmentation"].dtype == np.uint8
    assert values["normals"].dtype == np.float32
    for task in tasks:
        assert Image.open(tmp_path / "out" / f"photo-0.{task}.png").size == (48, 32)


def test_folders_are_read_and_large_pictures_scaled_down(made: Path, program: Program, tmp_path: Path) -> None:
    write_picture(tmp_path / "more" / "large.png", size=(60, 120))
    Image.new("RGBA", (30, 20)).save(tmp_path / "more" / "clear.webp")
    Image.new("L", (1, 1)).save(tmp_path / "more" / "grey.png")
    (tmp_path / "more" / "notes.txt").write_text("no picture", encoding="utf-8")
    arguments = [made / "depth", made / "photos", tmp_path / "more", "--longer-side", 40, "-o", tmp_path / "out"]
    assert program("-q", "predict", *arguments).out.startswith("predictions for 7 pictures")
    shapes = {file.stem: np.load(file)["depth"].shape for file in (tmp_path / "out").glob("*.npz")}
    assert shapes["large"] == (1, 20, 40)
    assert shapes["clear"] == (1, 20, 30)
    assert shapes["grey"] == (1, 1, 1)
    assert shapes["photo-0"] == (1, 27, 40)


def test_only_the_tasks_asked_for(made: Path, program: Program, tmp_path: Path) -> None:
    photo = made / "photos" / "photo-0.jpg"
    program("-q", "predict", made / "aligned", photo, "--task", "depth", "-o", tmp_path / "out")
    assert names(tmp_path / "out") == ["photo-0.depth.png", "photo-0.npz"]


def test_wrong_pictures_are_named_and_nothing_is_left(made: Path, refused: Refused, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        return refused("predict", made / "aligned", *arguments, "-o", "OUT")

    photos = Path(shutil.copytree(made / "photos", tmp_path / "photos"))
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in said(tmp_path / "empty")
    assert "nowhere does not exist; give pictures or folders of pictures" in said("nowhere")
    assert "have one name, so one result would hide the other" in said(photos, made / "photos")
    assert "unknown task(s) smell; this model has segmentation, depth, normals" in said(photos, "--task", "smell")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(photos / "deep.png")
    assert "deep.png: pixels of type 'I;16'" in said(photos)
    (photos / "deep.png").write_text("no picture", encoding="utf-8")
    assert "deep.png cannot be read as a picture" in said(photos)


def test_the_output_takes_no_picture_with_it(made: Path, refused: Refused, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(made / "photos", tmp_path / "photos"))
    for given in (photos, photos / "photo-1.jpg"):
        said = refused("predict", made / "aligned", given, "--overwrite", "-o", photos)
        assert f"would delete {given}, which this command reads" in said
    assert len(names(photos)) == 4


def test_predictions_are_replaced_where_that_is_asked(made: Path, program: Program, tmp_path: Path) -> None:
    arguments = ["-q", "predict", made / "aligned", made / "photos" / "photo-0.jpg", "-o", tmp_path / "out"]
    assert [program(*arguments, *more).status for more in ((), (), ("--overwrite",))] == [0, 2, 0]


def test_nonsense_is_not_written(made: Path, copied: Callable[[str], Path], refused: Refused) -> None:
    expert = copied("depth")
    change_tensors(expert, "encoder.vit.blocks.0.norm1.weight", 3e38)
    said = refused("predict", expert, made / "photos", "-o", "OUT")
    assert "the depth predicted for photo-0 is NaN or infinite" in said


# -- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_model_is(made: Path, program: Program) -> None:
    lines = dict(line.split("  ", 1) for line in program("inspect", made / "aligned").out.splitlines())
    told = {name: text.strip() for name, text in lines.items()}
    assert told["kind"] == "multi-task model"
    assert told["encoder"].startswith("test_vit, 0.31 M parameters, patch 16x16")
    assert told["taps"] == "blocks 0, 2, 3, 5 of 6, counted from 0"
    assert told["encoder passes"] == "1"
    assert told["base"].startswith("test_vit from random, SHA-256 ")
    assert told["task segmentation"].startswith("segmentation, 2 classes; linear decoder")
    assert told["task depth"].startswith("depth in m; linear decoder")
    assert "aligner linear-surgery" in told["task depth"]
    assert told["merge"] == "task-arithmetic (scale 0.3)"
    assert told["expert depth"].startswith(str(made / "depth"))
    assert told["re-alignment"].startswith("surgery-stretched (rank 4, ridge 0.01, reads own, objective features, ")
    assert "): 6 images, 0 labels, " in told["re-alignment"]


def test_inspect_sums_up_what_was_learned_and_says_where_all_of_it_is(
    made: Path, copied: Callable[[str], Path], program: Program
) -> None:
    model = copied("merged")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    layers = ("embeddings", *(f"block {i}" for i in range(6)), "final")
    learned = {layer: [0.1 * i, -0.5] for i, layer in enumerate(layers)}
    config["merge"]["parameters"] = {"steps": 100, "scale": [0.3, 0.4], "coefficients": learned}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    told = program("inspect", model).out
    assert "steps 100, scale [0.3, 0.4], coefficients 16 numbers, least -0.5, mean -0.075, greatest 0.7" in told
    assert "all in inspect --json" in told
    assert json.loads(program("inspect", model, "--json").out)["merge"]["parameters"]["coefficients"] == learned


def test_inspect_tells_what_an_expert_is(made: Path, program: Program) -> None:
    told = program("inspect", made / "depth").out
    assert "single-task model (an expert)" in told
    assert "image size      32x48\n" in told
    assert "merge" not in told
    assert program("inspect", made / "merged").out.splitlines()[-1].split() == ["re-alignment", "none"]


@pytest.mark.parametrize("name", ["depth", "merged", "aligned"])
def test_inspect_as_json_holds_numbers_and_no_text_to_take_apart(made: Path, program: Program, name: str) -> None:
    found = json.loads(program("inspect", made / name, "--json").out)
    model = load(made / name)
    assert found["encoder"]["taps"] == list(model.encoder.taps)
    assert found["encoder"]["parameters"] == sum(p.numel() for p in model.encoder.parameters())
    assert found["encoder_passes"] == 1
    assert found["base"]["sha256"] == model.base.sha256  # type: ignore[union-attr]
    assert list(found["tasks"]) == list(model.tasks)
    assert found["tasks"]["depth"]["task"]["unit"] == "m"
    if name == "aligned":
        assert found["merge"]["alignment"]["images"] == 6


def test_inspecting_what_is_no_checkpoint_is_refused(made: Path, refused: Refused) -> None:
    assert "is no checkpoint: it has no config.json" in refused("inspect", made)
