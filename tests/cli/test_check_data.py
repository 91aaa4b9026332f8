"""`check-data`: the outcome in words, as JSON, in pictures and as exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Program, Refused
from tests.small_set import write_set


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """12 images with a floor and a wall, in four splits."""
    return write_set(tmp_path / "small", {"train": 6, "calibration": 2, "val": 2, "test": 2})


def test_a_sound_set_ends_in_0_and_says_what_there_is(program: Program, small: Path) -> None:
    outcome = program("-q", "check-data", small)
    assert outcome.status == 0, outcome
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0] == "small (all), layout folder: 12 images, 32x48"
    assert lines[1] == "splits: calibration 2, test 2, train 6, val 2"
    assert lines[2].startswith("  segmentation  100 % labelled, 2 of 2 classes: ")
    assert "median" in lines[3]
    assert lines[-1].startswith("sound: no failures, ")


def test_the_rooms_need_no_split_and_can_have_one(program: Program) -> None:
    whole = program("-q", "check-data", "rooms", "--limit", 3, "--task", "depth")
    assert whole.status == 0
    assert "rooms (all), layout folder: 740 images, 3 of them read, 126x168" in whole.out
    assert "splits: calibration 100, test 130, train 450, val 60" in whole.out
    val = program("-q", "check-data", "rooms?size=63x84", "--limit", 3, "--split", "val")
    assert "rooms (val), layout folder: 60 images, 3 of them read, 63x84" in val.out
    assert "splits" not in val.out


def test_a_set_with_a_failure_ends_in_1_and_names_the_file(program: Program, small: Path) -> None:
    broken = small / "depth" / "val-1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    outcome = program("check-data", f"folder:{small}", "--split", "val")
    assert outcome.status == 1
    assert str(broken) in outcome.out
    assert outcome.out.splitlines()[-1].startswith("NOT SOUND: 1 failure, ")


def test_json_is_one_object_on_standard_output(program: Program, small: Path) -> None:
    (small / "normals" / "train-0.png").write_bytes(b"")
    outcome = program("check-data", small, "--json", "--split", "train")
    found = json.loads(outcome.out)
    assert outcome.status == 1
    assert found["sound"] is False
    failures = [finding for finding in found["findings"] if finding["level"] == "failure"]
    assert [finding["code"] for finding in failures] == ["unreadable"]
    assert failures[0]["keys"] == ["train-0"]
    assert found["images"]["read"] == 5


def test_label_files_that_are_missing_are_a_failure_and_the_other_tasks_are_checked(
    program: Program, small: Path
) -> None:
    gone = small / "depth" / "train-3.png"
    gone.unlink()
    outcome = program("check-data", small, "--json")
    found = json.loads(outcome.out)
    assert outcome.status == 1
    failure = found["findings"][0]
    assert (failure["code"], failure["task"], failure["details"]) == ("missing-files", "depth", [str(gone)])
    assert list(found["tasks"]) == ["segmentation", "normals"]
    alone = program("check-data", small, "--task", "depth", "--task", "occlusion_edges")
    assert alone.status == 1
    assert "1 label file is not there" in alone.out


def test_an_output_has_two_pictures_and_the_findings(program: Program, small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    outcome = program("check-data", small, "-o", output, "--limit", 4)
    assert outcome.status == 0
    assert str(output / "contact-sheet.png") in outcome.out
    for name in ("contact-sheet.png", "histograms.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 200
    assert json.loads((output / "findings.json").read_text(encoding="utf-8"))["images"]["read"] == 4
    again = program("check-data", small, "-o", output)
    assert again.status == 2
    assert "not empty" in again.err
    assert program("check-data", small, "-o", output, "--overwrite", "--limit", 2).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check-data"], "Missing argument"),
        (["check-data", "rooms", "--limit", "0"], "--limit"),
        (["check-data", "rooms", "--split", "nope", "-o", "OUT"], "no split 'nope'"),
        (["check-data", "rooms", "--task", "nope"], "rooms has no task nope"),
        (["check-data", "nowhere"], "neither a folder nor one of the known formats"),
        (["check-data", "rooms?layout=x"], "unknown option layout"),
    ],
)
def test_what_cannot_be_opened_ends_in_2(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_it_does_not_replace_what_it_reads(refused: Refused, small: Path) -> None:
    assert "would delete" in refused("check-data", small, "-o", small, "--overwrite")
