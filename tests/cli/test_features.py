"""`features`: one page about the features of a merged model and its re-alignments, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.checkpoints import load, load_expert
from simo_merge.data import open_dataset
from simo_merge.models import MultiTaskModel
from simo_merge.realign import capture, tap_distances
from tests.cli.conftest import TASKS, Program, Refused


@pytest.fixture(scope="module")
def realigned(made: Path) -> dict[str, Path]:
    return {
        name: made.parent / f"features-{name}" for name in ("surgery", "norms", "calibrated", "each", "head", "folded")
    }


@pytest.fixture
def fitted(made: Path, data: str, program: Program, realigned: dict[str, Path]) -> dict[str, Path]:
    options: dict[str, list[str]] = {
        "surgery": ["--rank", "3"],
        "norms": ["--method", "norm-recalibration"],
        "calibrated": ["--method", "encoder-calibration", "--set", "held_out=0.5"],
        "each": ["--method", "task-norms", "--set", "held_out=none"],
        "head": ["--method", "head", "--steps", "1"],
        "folded": ["--rank", "3", "--fold"],
    }
    for name, output in realigned.items():
        if not output.exists():
            program("-q", "realign", made / "merged", "--data", data, *options[name], "-o", output)
    return realigned


def test_a_page_shows_the_merge_and_its_re_alignments(
    made: Path, data: str, program: Program, fitted: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    given = [made / "merged", fitted["norms"], made / "aligned", fitted["surgery"]]  # the last two by one method
    outcome = program("-q", "features", *given, "--data", data, "--split", "val", "--device", "cpu", "-o", page)
    assert outcome.status == 0, outcome
    lines = {line.split()[0]: line.split()[-1] for line in outcome.out.splitlines()}
    merge = load(made / "merged")
    assert isinstance(merge, MultiTaskModel)
    assert merge.merge is not None
    name = merge.merge.method
    assert list(lines) == ["model", name, f"{name}+norm-recalibration", f"{name}+surgery-stretched", "open"]
    assert outcome.out.count(f"{name}+surgery-stretched ") == 2
    text = page.read_text(encoding="utf-8")
    for said in ("The features, before and after", "How the features are spread", "Where the features miss", *TASKS):
        assert said in text
    assert "No model was evaluated" not in text
    assert f"Distributions and maps are those of {name}+surgery-stretched (2)." in text
    assert f"{name}+surgery-stretched (2) is {fitted['surgery']}." in text


def test_what_it_says_is_the_mean_of_the_distances(
    made: Path, data: str, program: Program, fitted: dict[str, Path], tmp_path: Path
) -> None:

    asked = [
        "--data",
        data,
        "--split",
        "val",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "-o",
        tmp_path / "page.html",
    ]
    outcome = program("-q", "features", fitted["surgery"], *asked)  # the merge is what it has without aligners
    said = {line.split()[0]: line.split()[-1] for line in outcome.out.splitlines()}
    model = load(fitted["surgery"])
    assert isinstance(model, MultiTaskModel)
    assert model.merge is not None
    images = open_dataset(data, "val", [])
    ours = capture(model.encoder, images)
    for aligned, name in ((False, model.merge.method), (True, f"{model.merge.method}+surgery-stretched")):
        found = []
        for task, expert in model.merge.experts.items():
            theirs = capture(load_expert(Path(str(expert["path"]))).encoder, images)
            aligner = model.aligner(task) if aligned else None
            found += [d.explained_variance for d in tap_distances(ours, theirs, model.encoder.taps, aligner)]
        assert float(said[name]) == pytest.approx(sum(found) / len(found), abs=6e-4)


def test_without_aligners_there_is_the_merge_alone(
    made: Path, data: str, program: Program, fitted: dict[str, Path], tmp_path: Path
) -> None:
    for model, name in ((made / "merged", ""), (fitted["head"], ""), (fitted["calibrated"], "+encoder-calibration")):
        page = tmp_path / f"{model.name}.html"
        outcome = program("-q", "features", model, "--data", data, "--split", "val", "--device", "cpu", "-o", page)
        assert outcome.status == 0, outcome
        rows = outcome.out.splitlines()[1:-1]
        assert len(rows) == 1
        assert rows[0].split()[0].partition("+")[2] == name.removeprefix("+")
        drawn = page.read_text(encoding="utf-8")
        assert ("so it is not drawn" in drawn) == (model.name == fitted["head"].name)


def test_what_cannot_be_compared_is_refused(
    made: Path, data: str, program: Program, refused: Refused, fitted: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    program("-q", "merge", *(made / task for task in TASKS), "--method", "weight-average", "-o", other)
    asked = ["--data", data, "--split", "val", "-o", tmp_path / "page.html"]
    assert "has another encoder than" in refused("features", made / "merged", other, *asked)
    assert "give the model as it was before --fold" in refused("features", fitted["folded"], *asked)
    assert "differs from task to task" in refused("features", fitted["each"], *asked)
    assert "is a single-task model" in refused("features", made / "depth", *asked)
    assert "give either --images" in refused("features", made / "merged", "-o", tmp_path / "page.html")
    assert "is a folder; give the name of a file" in refused(
        "features", made / "merged", "--data", data, "-o", tmp_path
    )
    assert not (tmp_path / "page.html").exists()
