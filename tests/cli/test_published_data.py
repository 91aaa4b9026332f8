"""The published data sets through the program: checked, trained on, merged, re-aligned and evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from simo_merge.results import read_results
from tests.cli.conftest import ENCODER, SHORT, Program
from tests.trees import cityscapes, nyuv2, taskonomy

SMALL = "size=32x48"


def nyuv2_official(root: Path) -> Path:
    return nyuv2.write_official(root, nyuv2.make_world(size=(24, 32)))


def nyuv2_mtan(root: Path) -> Path:
    return nyuv2.write_mtan(root, nyuv2.make_world(size=(24, 32)))


def taskonomy_official(root: Path) -> Path:
    taskonomy.write_official(root)
    return root


@pytest.mark.parametrize(
    ("prefix", "write", "splits", "tasks"),
    [
        ("nyuv2", nyuv2_official, ("train", "test"), ("segmentation", "depth", "normals")),
        ("nyuv2", nyuv2_mtan, ("train", "simo-2504.11268/test"), ("segmentation", "depth", "normals")),
        ("cityscapes", cityscapes.write_official, ("train", "val"), ("segmentation", "parts", "disparity")),
        ("cityscapes", cityscapes.write_mtan, ("train", "val"), ("segmentation", "disparity")),
        ("taskonomy", taskonomy_official, ("tiny/train", "tiny/val"), ("depth", "keypoints2d", "reconstruction")),
    ],
    ids=["nyuv2-official", "nyuv2-mtan", "cityscapes-official", "cityscapes-mtan", "taskonomy-official"],
)
def test_experts_of_a_published_data_set_are_trained_merged_realigned_and_evaluated(
    prefix: str,
    write: Callable[[Path], Path],
    splits: tuple[str, str],
    tasks: tuple[str, ...],
    program: Program,
    tmp_path: Path,
) -> None:
    data = f"{prefix}:{write(tmp_path / 'set')}?{SMALL}"
    train, test = splits
    for task in tasks:
        trained = program(
            "train", "--task", task, "--data", data, "--split", train, *ENCODER, *SHORT, "-o", tmp_path / task
        )
        assert trained.status == 0, trained.err
        assert f"{prefix}: layout " in trained.err
    experts = [tmp_path / task for task in tasks]
    assert program("-q", "merge", *experts, "-o", tmp_path / "merged").status == 0
    aligned = program(
        "-q", "realign", tmp_path / "merged", "--data", data, "--split", train, "--rank", 4, "-o", tmp_path / "aligned"
    )
    assert aligned.status == 0, aligned.err
    found = tmp_path / "results.json"
    evaluated = program("evaluate", tmp_path / "aligned", "--data", data, "--split", test, "--json", found)
    assert evaluated.status == 0, evaluated.err
    rows = read_results(found)[1]
    assert [row.method for row in rows] == ["experts", "task-arithmetic+surgery-stretched"]
    assert all((row.data, row.split, set(row.tasks)) == (prefix, test, set(tasks)) for row in rows)


@pytest.mark.parametrize(
    ("prefix", "write", "split"),
    [
        ("nyuv2", nyuv2_official, "train"),
        ("cityscapes", cityscapes.write_official, "val"),
    ],
)
def test_a_sound_part_of_a_published_data_set_is_told_to_be_partial(
    prefix: str, write: Callable[[Path], Path], split: str, program: Program, tmp_path: Path
) -> None:
    checked = program("-q", "check-data", f"{prefix}:{write(tmp_path / 'set')}", "--split", split, "--json")
    assert checked.status == 0, checked.out
    findings = json.loads(checked.out)["findings"]
    assert any(finding["code"] == "partial" for finding in findings)
    assert not any(finding["level"] == "failure" for finding in findings)


def test_only_the_labels_of_the_models_tasks_need_to_be_there(program: Program, tmp_path: Path) -> None:
    root = cityscapes.write_official(tmp_path / "set")
    data, made = f"cityscapes:{root}?{SMALL}", tmp_path / "disparity"
    assert program("-q", "train", "--task", "disparity", "--data", data, *ENCODER, *SHORT, "-o", made).status == 0
    shutil.rmtree(root / "gtFine" / "val")
    evaluated = program("evaluate", made, "--data", data, "--split", "val")
    assert evaluated.status == 0, evaluated.err
    assert evaluated.err.count("layout official") == 1
