"""prepare.py of Cityscapes: nothing is lost but resolution, an interruption costs nothing, damage is noticed."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data import FolderDataset, SourceDataset
from simo_merge.data.cityscapes import cityscapes
from tests.trees import cityscapes as tree

SCRIPT = Path(__file__).parents[2] / "datasets" / "cityscapes" / "prepare.py"
TASKS = ["segmentation", "parts", "disparity"]


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cityscapes_prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def afresh(prepare: ModuleType) -> Iterator[None]:
    """A process of its own would remember nothing of an earlier run, and leave nothing behind."""
    prepare.source.cache_clear()
    yield
    logging.getLogger("simo_merge").setLevel(logging.NOTSET)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return tree.write_official(tmp_path / "official")


def files(root: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def run(prepare: ModuleType, root: Path, out: Path, *options: str) -> int:
    prepare.source.cache_clear()
    return prepare.main([str(root), "--out", str(out), "--workers", "1", *options])


def agree(first: SourceDataset, second: SourceDataset, pixels: float) -> None:
    """Both hold the same pictures, labels and masks; pictures may differ by so much."""
    assert {name: task.kind for name, task in second.tasks.items()} == {n: t.kind for n, t in first.tasks.items()}
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(two.image, one.image, rtol=0, atol=pixels)
        for name in first.tasks:
            mask = one.masks[name]
            assert torch.equal(two.masks[name], mask), (name, one.key)
            assert torch.equal(two.targets[name][..., mask], one.targets[name][..., mask]), (name, one.key)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_fast_form_is_the_published_one_at_its_size(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "8x16") == 0
    for split, keys in (("train", tree.TRAIN), ("val", tree.VAL)):
        fast = FolderDataset(out, split)
        assert fast.keys == keys
        published = cityscapes(official, split, TASKS, size=(8, 16))
        assert fast.tasks == published.tasks
        agree(published, fast, pixels=0.501 / 255)


def test_at_full_size_files_hold_the_published_numbers(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "16x32") == 0
    for key in tree.TRAIN + tree.VAL:
        seen = tree.street(key)
        assert (np.array(Image.open(out / "images" / f"{key}.png")) == seen.image).all()
        assert (np.array(Image.open(out / "disparity" / f"{key}.png")) == seen.stored).all()
        index = np.array(Image.open(out / "segmentation" / f"{key}.png")).astype(int)
        assert (np.where(index == 255, -1, index) == tree.classes(seen.ids, 19)).all()
        assert (np.array(Image.open(out / "parts" / f"{key}.png")) == tree.parts(seen.uids)).all()


@pytest.mark.parametrize("classes", [19, 7])
def test_the_mtan_form_is_read_like_the_published_files(
    prepare: ModuleType, official: Path, tmp_path: Path, classes: int
) -> None:
    out = tmp_path / "mtan"
    assert run(prepare, official, out, "--form", "mtan", "--size", "8x16") == 0
    for split in ("train", "val"):
        arrays = cityscapes(out, split, TASKS, classes=classes)
        assert arrays.source.layout == "mtan"
        agree(cityscapes(official, split, TASKS, size=(8, 16), classes=classes), arrays, pixels=0.501 / 255)


def test_the_mtan_form_has_mtan_s_shapes_and_values(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "mtan"
    assert run(prepare, official, out, "--form", "mtan", "--size", "16x32") == 0
    arrays = {p.parent.name: np.load(p) for p in sorted((out / "train").glob("*/0.npy"))}
    assert {name: values.shape for name, values in arrays.items()} == {
        "image": (16, 32, 3),
        "label_19": (16, 32),
        "label_7": (16, 32),
        "part_seg": (16, 32),
        "depth": (16, 32, 1),
    }
    stored = tree.street(tree.FULL).stored
    assert (arrays["depth"][..., 0] == (stored / 65535).astype(np.float32)).all()
    assert arrays["label_19"].min() == arrays["label_7"].min() == -1
    assert (out / "keys.csv").read_text(encoding="utf-8").splitlines()[1:3] == [
        f"train,{i},{tree.TRAIN[i]}" for i in (0, 1)
    ]


def test_depth_classes_and_unit_can_be_chosen(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    chosen = ("--tasks", "disparity,depth,segmentation", "--classes", "7", "--disparity", "px@512")
    assert run(prepare, official, tmp_path / "fast", "--size", "8x16", "--splits", "val", *chosen) == 0
    fast = FolderDataset(tmp_path / "fast", "val")
    published = cityscapes(official, "val", list(fast.tasks), size=(8, 16), classes=7, disparity="px@512")
    assert list(fast.tasks) == ["segmentation", "disparity", "depth"]
    assert fast.tasks == published.tasks
    agree(published, fast, pixels=0.501 / 255)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    assert run(prepare, official, tmp_path / "one", "--size", "8x16") == 0
    command = [sys.executable, str(SCRIPT), str(official), "--out", str(tmp_path / "two"), "--size", "8x16"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of the 2975 images" in done.stdout
    assert files(tmp_path / "two") == files(tmp_path / "one")


# -- going on, and noticing damage -------------------------------------------------------------------------------------


def test_what_is_complete_is_kept(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "8x16") == 0
    before = files(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert run(prepare, official, out, "--size", "8x16") == 0
    assert files(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == times
    assert "24 were there and agree" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(
    prepare: ModuleType, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(prepare, official, tmp_path / "whole", "--size", "8x16") == 0
    out, made = tmp_path / "fast", prepare.produce

    def stop(job: object, split: str, number: int, known: dict[str, str]) -> object:
        if split == "train" and number == 2:
            (out / "images" / ".torn.png.1.part").write_bytes(b"torn")
            raise KeyboardInterrupt
        return made(job, split, number, known)

    monkeypatch.setattr(prepare, "produce", stop)
    assert run(prepare, official, out, "--size", "8x16") == 130
    assert len(list(out.rglob("*.png"))) == 8
    monkeypatch.setattr(prepare, "produce", made)
    assert run(prepare, official, out, "--size", "8x16") == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["cut off", "changed", "gone"])
def test_a_file_that_is_not_as_it_was_is_written_again(
    prepare: ModuleType, official: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "8x16") == 0
    before = files(out)
    path = out / "disparity" / f"{tree.VAL[0]}.png"
    if kind == "cut off":
        tree.damage(path)
    elif kind == "changed":
        Image.fromarray(np.ones((8, 16), np.uint16)).save(path)
    else:
        path.unlink()
    assert run(prepare, official, out, "--size", "8x16") == 0
    assert files(out) == before
    assert ("1 differed from SHA256SUMS and were written again" in capsys.readouterr().out) == (kind != "gone")


def test_splits_can_be_added(prepare: ModuleType, official: Path, tmp_path: Path) -> None:
    for form in ("folder", "mtan"):
        for splits in ("val", "train", "train,val"):
            assert run(prepare, official, tmp_path / form, "--size", "8x16", "--form", form, "--splits", splits) == 0
    assert FolderDataset(tmp_path / "folder", "val").keys == tree.VAL
    assert cityscapes(tmp_path / "mtan", "train").keys[-1] == "train/3"


# -- mistakes end in one line ------------------------------------------------------------------------------------------


def fails(
    prepare: ModuleType, capsys: pytest.CaptureFixture[str], root: Path, out: Path, *options: str, says: str
) -> None:
    assert run(prepare, root, out, "--size", "8x16", *options) == 2
    told = capsys.readouterr().err
    assert told.startswith("prepare.py: error: ")
    assert told.count("\n") == 1
    assert says in told


def test_other_settings_need_another_folder(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "4x8") == 0
    fails(prepare, capsys, official, out, says="was prepared with size [4, 8] (now [8, 16])")


def test_a_folder_with_something_else_is_left_alone(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious", encoding="utf-8")
    fails(prepare, capsys, official, tmp_path / "mine", says="is not empty")
    assert files(tmp_path / "mine") == {"thesis.tex": b"precious"}


def test_a_missing_label_is_told_before_anything_is_written(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (official / "disparity" / "train" / f"{tree.TRAIN[3]}_disparity.png").unlink()
    fails(prepare, capsys, official, tmp_path / "fast", says="zurich_000121_000019_disparity.png does not exist")
    assert not (tmp_path / "fast").exists()


def test_a_damaged_picture_is_named_and_the_rest_goes_on_when_it_is_mended(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = official / "leftImg8bit" / "train" / f"{tree.TRAIN[1]}_leftImg8bit.png"
    whole = path.read_bytes()
    tree.damage(path)
    fails(prepare, capsys, official, tmp_path / "fast", says=f"{path.name} cannot be read as a picture")
    path.write_bytes(whole)
    assert run(prepare, official, tmp_path / "fast", "--size", "8x16") == 0
    assert "4 were there and agree" in capsys.readouterr().out


def test_a_picture_that_no_list_has_is_an_error(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast"
    assert run(prepare, official, out, "--size", "8x16") == 0
    Image.new("RGB", (16, 8)).save(out / "images" / "holiday.png")
    fails(prepare, capsys, official, out, says="images/holiday.png is there and not in SHA256SUMS")


def test_numbers_never_change_their_meaning(
    prepare: ModuleType, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mtan"
    assert run(prepare, official, out, "--size", "8x16", "--form", "mtan") == 0
    for path in official.rglob("bochum_000000_000313*"):
        path.unlink()
    fails(prepare, capsys, official, out, "--form", "mtan", says="has 4 pictures of train, and the source has 3")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--splits", "train,test"), "--splits is 'train,test'; expected some of train,val"),
        (("--tasks", "normals"), "--tasks is 'normals'; expected some of segmentation,parts,disparity,depth"),
        (("--form", "mtan", "--tasks", "depth"), "expected some of segmentation,parts,disparity"),
        (("--form", "mtan", "--classes", "7"), "--classes and --disparity are for the form folder"),
        (("--size", "8"), "a size is HEIGHTxWIDTH"),
        (("--workers", "0"), "--workers is 0"),
        (("--disparity", "cm"), "unknown unit of disparity 'cm'"),
    ],
)
def test_options_that_do_not_fit(
    prepare: ModuleType,
    official: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    fails(prepare, capsys, official, tmp_path / "fast", *options, says=says)


def test_a_folder_without_the_published_files(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(prepare, capsys, tmp_path / "nowhere", tmp_path / "fast", says="nowhere does not exist")
    fails(prepare, capsys, tree.write_png(tmp_path / "png"), tmp_path / "fast", says="no images in")
