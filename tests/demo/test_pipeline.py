"""The demo from end to end, on an encoder and a data set that are small enough for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simo_merge.checkpoints import load
from simo_merge.demo import DemoOptions, pipeline, run_demo
from simo_merge.demo.photos import PHOTOGRAPHS
from simo_merge.demo.pipeline import DemoResult
from simo_merge.errors import SimoError
from simo_merge.realign import (
    BatchNormRecalibration,
    HeadRealignment,
    LinearSurgery,
    NormRecalibration,
    Realignment,
    Surgery,
)
from simo_merge.results import read_results
from simo_merge.training import TrainConfig
from simo_merge.weights import Base, load_base
from tests.small_set import SPLITS, write_set

QUICK = TrainConfig(decoder="linear", decoder_steps=2, steps=2, batch_size=2, encoder_lr=1e-3)
LABEL_FREE = (
    *("batch-norm", "norm-recalibration", "surgery-closed-form", "surgery-stretched"),
    *("surgery-from-closed-form", "surgery"),
)


def small_base() -> Base:
    return load_base("test_vit", "random")


def quick_realignments() -> list[Realignment]:
    return [
        BatchNormRecalibration(),
        NormRecalibration(),
        LinearSurgery(rank=4, stretch="none"),
        LinearSurgery(rank=4),
        Surgery(rank=4, steps=2, start="closed-form"),
        Surgery(rank=4, steps=2),
        HeadRealignment(steps=2),
    ]


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """The demo with a small encoder and few steps; everything else is its own."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_base", small_base)
        patch.setattr(pipeline, "realignments", quick_realignments)
        patch.setattr(pipeline, "RANK", 4)
        patch.setattr(pipeline, "PHOTO_SIDE", 48)
        yield patch


@pytest.fixture(scope="module")
def options(small: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> DemoOptions:
    folder = tmp_path_factory.mktemp("demo")
    small.setenv("SIMO_MERGE_CACHE", str(folder / "cache"))
    return DemoOptions(folder / "output", write_set(folder / "set"), seed=1, training=QUICK)


@pytest.fixture(scope="module")
def result(options: DemoOptions) -> DemoResult:
    return run_demo(options)


def test_it_compares_what_its_users_would_compare() -> None:
    labels = [method.label for method in pipeline.realignments()]
    assert labels == [*LABEL_FREE, "head"]
    assert [method.label for method in quick_realignments()] == labels


def test_every_model_has_a_row_that_states_what_it_cost(result: DemoResult) -> None:
    environment, rows = read_results(result.output / "results.json")
    by_name = {row.method: row for row in rows}
    aligned = [f"task-arithmetic+{label}" for label in (*LABEL_FREE, "head")]
    assert list(by_name) == ["experts", "base", "task-arithmetic", *aligned]
    for row in rows:
        assert (row.data, row.split, row.seed) == ("small", "test", 1)
        assert list(row.per_task) == list(row.tasks) == ["segmentation", "depth", "normals"]
        assert row.encoder_passes == (3 if row.method == "experts" else 1)
        assert row.images == (0 if row.method in ("experts", "base") else SPLITS["calibration"])
    labels = {row.method: row.labels for row in rows if row.labels}
    assert labels == {"experts": SPLITS["train"], "task-arithmetic+head": SPLITS["calibration"]}
    assert by_name["experts"].delta_ratio == 0
    assert environment["base weights"] == "random"
    assert f"scale {result.selection.scale:g}" in environment["merge"]


def test_the_report_stands_for_itself(result: DemoResult) -> None:
    page = (result.output / "report.html").read_text(encoding="utf-8")
    for row in result.rows:
        assert f'data-method="{row.method}"' in page
    assert "Eileen Collins" in page
    assert "simo-merge demo --seed 1" in page


def test_the_model_and_the_pictures_lie_beside_it(result: DemoResult) -> None:
    assert sorted(path.name for path in result.output.iterdir()) == ["model", "photos", "report.html", "results.json"]
    model = load(result.output / "model")
    with torch.inference_mode():
        prediction = model(torch.rand(1, 3, 32, 48))
    assert prediction["depth"].shape == (1, 1, 32, 48)
    assert len(list((result.output / "photos").glob("*.png"))) == 5


def test_the_same_seed_gives_the_same_scores(result: DemoResult, options: DemoOptions) -> None:
    again = run_demo(replace(options, output=options.output.with_name("again")))
    for first, second in zip(result.rows, again.rows, strict=True):
        assert first.per_task == second.per_task, first.method


# -- what is refused, before any work ---------------------------------------------------------------------------


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where the demo begins to work."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(pipeline, "load_base", fail)


@pytest.mark.usefixtures("never")
def test_an_output_that_exists_is_refused_before_any_work(options: DemoOptions, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SimoError, match="exists and is not empty; choose another or pass --overwrite"):
        run_demo(DemoOptions(tmp_path, options.data))


@pytest.mark.usefixtures("never")
def test_a_missing_data_set_is_told_before_any_work(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="the rooms data set was not found in"):
        run_demo(DemoOptions(tmp_path / "output", tmp_path))


@pytest.mark.usefixtures("never")
def test_missing_photographs_are_told_before_any_work(
    options: DemoOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "more", ("no_such_package", "data/more.png"))
    with pytest.raises(SimoError, match="pip install"):
        run_demo(DemoOptions(tmp_path / "output", options.data))


def test_a_demo_that_fails_at_the_end_leaves_no_half_output(
    options: DemoOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SimoError("no report")

    monkeypatch.setattr(pipeline, "write_report", fail)
    with pytest.raises(SimoError, match="no report"):
        run_demo(DemoOptions(tmp_path / "output", options.data, 1, QUICK))
    assert list(tmp_path.iterdir()) == []
