"""From a copy of Taskonomy to the fast form: the same labels, resumable, checked, with errors of one line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data import FolderDataset
from simo_merge.data.taskonomy import taskonomy
from tests.trees import taskonomy as tree

SCRIPT = Path(__file__).parents[2] / "datasets" / "taskonomy" / "prepare.py"
SMALL = (8, 12)
Run = Callable[..., int]


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The script's entry point, in this process, with one worker."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    for name in ("prepare", "taskonomy_form"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import prepare as script

    assert Path(script.__file__) == SCRIPT
    yield lambda *arguments: script.main([*map(str, arguments), "--size", "8x12", "--workers", "1"])
    for name in ("prepare", "taskonomy_form"):
        sys.modules.pop(name, None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    root = tmp_path / "taskonomy"
    tree.write_downloader(root, tree.make_world(["stockman", "allensville"]))
    return root


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare.py: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_fast_form_reads_as_the_original_does_at_that_size(prepare: Run, copy: Path, tmp_path: Path) -> None:
    assert prepare(copy, tmp_path / "fast", "--split", "tiny/train") == 0
    fast, original = FolderDataset(tmp_path / "fast", "tiny-train"), taskonomy(copy, "tiny/train", size=SMALL)
    assert fast.name == original.name
    assert fast.keys == original.keys
    assert fast.tasks == original.tasks
    for i in range(len(original)):
        one, other = fast[i], original[i]
        assert (one.image - other.image).abs().max() <= 0.5 / 255 + 1e-6
        for task in original.tasks:
            mask = one.masks[task]
            assert torch.equal(mask, other.masks[task]), task
            assert torch.equal(one.targets[task][..., mask], other.targets[task][..., mask]), task


def test_labels_keep_their_numbers_and_their_bit_depth(prepare: Run, copy: Path, tmp_path: Path) -> None:
    prepare(copy, tmp_path / "fast")
    view = tree.make_view("allensville/point_10_view_0")
    for task, domain in tree.TASKS.items():
        with Image.open(tmp_path / "fast" / task / "allensville" / "point_10_view_0.png") as picture:
            numbers = np.array(picture)
        stored = view[domain]
        channels = {"reshading": 1, "principal_curvature": 2}.get(task, 3)
        expected = stored[1::2, 1::2] if stored.ndim == 2 else stored[1::2, 1::2, :channels]
        assert numbers.dtype == stored.dtype
        assert np.array_equal(numbers.reshape(*SMALL, -1), expected.reshape(*SMALL, -1)), task


def test_a_second_run_changes_nothing(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(copy, tmp_path / "fast")
    assert "8 views written, 0 were there already" in capsys.readouterr().out
    first = hashes(tmp_path / "fast")
    written = (tmp_path / "fast" / "depth" / "stockman" / "point_1_view_0.png").stat().st_mtime_ns
    assert prepare(copy, tmp_path / "fast") == 0
    assert "0 views written, 8 were there already" in capsys.readouterr().out
    assert hashes(tmp_path / "fast") == first
    assert (tmp_path / "fast" / "depth" / "stockman" / "point_1_view_0.png").stat().st_mtime_ns == written


def test_an_interrupted_run_goes_on_to_the_same_result(
    prepare: Run, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(copy, tmp_path / "whole")
    import taskonomy_form

    write, calls = taskonomy_form.write, iter(range(1000))

    def interrupted(path: Path, content: bytes) -> None:
        if next(calls) == 20:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(taskonomy_form, "write", interrupted)
        assert prepare(copy, tmp_path / "fast") == 2
    assert "the same command goes on with the rest" in capsys.readouterr().err
    assert not (tmp_path / "fast" / "dataset.yaml").exists()
    assert prepare(copy, tmp_path / "fast") == 0
    assert hashes(tmp_path / "fast") == hashes(tmp_path / "whole")
    assert not list((tmp_path / "fast").rglob("*.part"))


def test_every_file_is_in_the_list_of_sums(prepare: Run, copy: Path, tmp_path: Path) -> None:
    prepare(copy, tmp_path / "fast")
    lines = (tmp_path / "fast" / "SHA256SUMS").read_text().splitlines()
    listed = {file: value for value, file in (line.split("  ") for line in lines)}
    pictures = {file: value for file, value in hashes(tmp_path / "fast").items() if file.endswith(".png")}
    assert listed == pictures
    assert len(listed) == 8 * (len(tree.TASKS) + 2)  # the labels, the image and the mask


def test_a_file_that_changed_is_found_by_the_next_run(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(copy, tmp_path / "fast")
    changed = tmp_path / "fast" / "edge_texture" / "stockman" / "point_1_view_0.png"
    before = changed.read_bytes()
    tree.write_file(changed, np.zeros(SMALL, np.uint16))
    assert prepare(copy, tmp_path / "fast") == 2
    assert f"{changed} has changed since it was written; delete it" in error_of(capsys)
    changed.unlink()
    assert prepare(copy, tmp_path / "fast") == 0
    assert changed.read_bytes() == before


def test_a_file_too_many_is_found(prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(copy, tmp_path / "fast")
    tree.write_file(tmp_path / "fast" / "depth" / "stockman" / "stray.png", np.ones(SMALL, np.uint16))
    assert prepare(copy, tmp_path / "fast") == 2
    assert "stray.png is not in SHA256SUMS (1 such files)" in error_of(capsys)


def test_a_damaged_source_is_named_and_can_be_left_out(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy / "edge_texture" / "taskonomy" / "stockman" / "point_2_view_1_domain_edge_texture.png"
    tree.damage(damaged)
    assert prepare(copy, tmp_path / "fast", "--split", "tiny/train") == 2
    message = error_of(capsys)
    assert f"{damaged} cannot be read as a picture" in message
    assert "--skip-damaged" in message
    assert prepare(copy, tmp_path / "fast", "--split", "tiny/train", "--skip-damaged") == 0
    keys = FolderDataset(tmp_path / "fast", "tiny-train").keys
    assert len(keys) == 7
    assert "stockman/point_2_view_1" not in keys
    assert (tmp_path / "fast" / "left_out.txt").read_text().startswith(f"stockman/point_2_view_1: {damaged}")


def test_an_eight_bit_depth_is_not_carried_over(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.to_eight_bits(copy / "depth_zbuffer" / "taskonomy" / "stockman" / "point_2_view_1_domain_depth_zbuffer.png")
    assert prepare(copy, tmp_path / "fast", "--tasks", "depth") == 2
    assert "expected 16-bit" in error_of(capsys)


def test_other_options_in_the_same_folder_are_refused(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(copy, tmp_path / "fast", "--tasks", "depth")
    assert prepare(copy, tmp_path / "fast", "--tasks", "depth", "normals") == 2
    assert "was prepared with other options (tasks ['depth'], now ['depth', 'normals'])" in error_of(capsys)


def test_buildings_limit_and_tasks_choose(prepare: Run, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    chosen = ("--tasks", "normals", "keypoints2d", "--images", "jpg")
    assert prepare(copy, out, "--buildings", "stockman", "--limit", "2", *chosen) == 0
    dataset = FolderDataset(out)
    assert dataset.keys == tuple(f"stockman/{view}" for view in tree.SORTED_VIEWS[:2])
    assert list(dataset.tasks) == ["normals", "keypoints2d"]
    assert (out / "images" / "stockman" / "point_10_view_0.jpg").is_file()


def test_splits_can_be_added_later(prepare: Run, tmp_path: Path) -> None:
    root = tmp_path / "taskonomy"
    tree.write_official(root)
    for split in ("tiny/val", "tiny/test"):
        assert prepare(root, tmp_path / "fast", "--tasks", "depth", "--split", split) == 0
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "fast" / "gt_sets").iterdir()}
    assert {name: keys[0] for name, keys in lists.items()} == {
        "tiny-val": "wiconisco/point_10_view_0",
        "tiny-test": "ihlen/point_10_view_0",
    }
    assert len(FolderDataset(tmp_path / "fast")) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "no split 'train'; it has tiny/train"),
        (["--tasks", "colour"], "has no task colour; it has segmentation, depth"),
        (["--buildings", "atlantis"], "has no building atlantis; it has allensville, stockman"),
        (["--limit", "0"], "must be 1 or more"),
        (["--split", "tiny/val"], "pictures of none of the 5 buildings"),
    ],
)
def test_mistakes_end_in_one_line(
    prepare: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert prepare(copy, tmp_path / "fast", *arguments) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "fast" / "images").exists()


@pytest.mark.slow
def test_two_workers_write_what_one_writes(prepare: Run, copy: Path, tmp_path: Path) -> None:
    prepare(copy, tmp_path / "one")
    command = [sys.executable, SCRIPT, copy, tmp_path / "two", "--size", "8x12", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "8 views written" in done.stdout
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
