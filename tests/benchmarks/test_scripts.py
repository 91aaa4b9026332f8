"""Each script from end to end, on a data set that is small enough for it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import pytest

import budget
import data_loading
import paper_tables
import sample_efficiency
import scaling_tasks
import simo_merge as sm
from bench.checks import used
from bench.command_line import run
from bench.curves import LEAST
from bench.parts import drawn
from bench.workbench import Workbench
from simo_merge.errors import SimoError
from simo_merge.models import MergeRecord, MultiTaskModel
from simo_merge.realign import HeadRealignment
from simo_merge.results import ResultRow, read_results
from tests.benchmarks.worlds import SMALL, write_recipe
from tests.small_set import SPLITS

TASKS = ("segmentation", "depth", "normals")
Main = Callable[[Sequence[str] | None], int]


def rows_of(main: Main, folder: Path, data: str, name: str, *more: str) -> list[ResultRow]:
    recipe, output = write_recipe(folder / f"{name}.yaml"), folder / f"{name}.json"
    assert main(["--data", data, "--recipe", str(recipe), "--output", str(output), *more]) == 0
    return read_results(output)[1]


@pytest.fixture(scope="module")
def paper(folder: Path, data: str) -> list[ResultRow]:
    return rows_of(paper_tables.main, folder, data, "paper")


def test_the_paper_has_experts_joint_training_merges_and_what_mends_them(paper: list[ResultRow]) -> None:
    merges = ("task-arithmetic", "weight-average")
    aligned = [f"{made}+{align}" for made in ("experts", *merges) for align in ("surgery-closed-form", "head")]
    assert {row.method for row in paper} == {"experts", "base", "joint-equal", "joint-equal+head", *merges, *aligned}
    assert all(row.tasks == TASKS and math.isfinite(row.delta_ratio) for row in paper)
    assert len({row.recipe for row in paper}) == len(paper)


def test_a_row_says_what_it_was_given_and_what_it_cost(paper: list[ResultRow]) -> None:
    row = {found.method: found for found in paper}
    assert row["experts"].delta_ratio == 0
    assert (row["experts"].labels, row["experts"].encoder_passes, row["experts"].steps) == (SPLITS["train"], 3, 4)
    joint = row["joint-equal"]
    assert (joint.labels, joint.steps, joint.encoder_passes) == (SPLITS["train"], 6, 1)
    assert joint.fit_seconds > 0
    whole = SPLITS["train"] + SPLITS["calibration"]
    trained_on = row["joint-equal+head"]
    assert (trained_on.labels, trained_on.steps, trained_on.encoder_passes) == (whole, 2, 1)
    assert math.isnan(trained_on.merge_seconds)
    assert row["experts"].trainable_parameters > joint.trainable_parameters > 0
    assert row["task-arithmetic"].labels == row["task-arithmetic"].images == SPLITS["val"]
    assert row["task-arithmetic"].options["scale"] in (0.2, 0.5)
    assert row["weight-average"].labels == row["weight-average"].images == 0
    assert row["weight-average"].merge_seconds > 0
    closed, head = (row[f"weight-average+{name}"] for name in ("surgery-closed-form", "head"))
    assert (closed.labels, closed.images, closed.steps) == (0, SPLITS["calibration"], 0)
    assert (head.labels, head.steps) == (SPLITS["calibration"], 2)
    chosen = row["task-arithmetic+head"]  # a coefficient by the one split, decoders by the other
    assert chosen.labels == chosen.images == SPLITS["val"] + SPLITS["calibration"]
    assert row["task-arithmetic+surgery-closed-form"].labels == SPLITS["val"]
    assert closed.capture_seconds > head.capture_seconds > 0
    assert closed.options["realignment"]["rank"] == 4


def test_the_experts_are_re_aligned_each_by_itself(folder: Path, data: str, paper: list[ResultRow]) -> None:
    row = {found.method: found for found in paper}
    closed, head = (row[f"experts+{name}"] for name in ("surgery-closed-form", "head"))
    assert closed.per_task == row["experts"].per_task  # there is nothing to mend
    whole = SPLITS["train"] + SPLITS["calibration"]
    assert (closed.labels, head.labels, head.images) == (SPLITS["train"], whole, SPLITS["calibration"])
    assert (head.encoder_passes, head.steps, head.options["fitted_to"]) == (3, 2, SPLITS["calibration"])
    assert head.fit_seconds > 0
    base, config = sm.load_base("test_vit", "random"), sm.TrainConfig(**SMALL["training"], seed=0)
    trained = 0
    for task in TASKS:
        train, calibration, test = (sm.open_dataset(data, s, (task,)) for s in ("train", "calibration", "test"))
        expert = sm.train_expert(train, task, config, base)
        alone = MultiTaskModel(expert.encoder, {task: expert.decoder}, {task: expert.task}, merge=MergeRecord("alone"))
        fitted = sm.realign(alone, [expert], drawn(calibration, 0), HeadRealignment(steps=2))
        assert fitted.merge is not None
        assert fitted.merge.alignment is not None
        trained += fitted.merge.alignment["trainable_parameters"]
        assert head.per_task[task] == pytest.approx(sm.evaluate(fitted, test, [expert]).per_task[task], rel=1e-4)
    assert head.trainable_parameters == trained


def test_rows_by_name_replace_those_of_the_recipe(folder: Path, data: str) -> None:
    asked = ["--merges", "ties", "emr", "--realignments", "norm-recalibration", "--weightings", "--tasks", *TASKS[:2]]
    rows = rows_of(paper_tables.main, folder, data, "named", *asked)
    assert [row.method for row in rows] == ["experts", "base", "ties", "ties+norm-recalibration", "emr"]
    assert all(row.tasks == TASKS[:2] for row in rows)
    assert rows[-1].encoder_passes == 2  # emr: an encoder a task, nothing to re-align


@pytest.mark.parametrize("asked", [["--merges", "tise"], ["--weightings", "equl"], ["--realignments", "hed"]])
def test_a_name_that_nobody_knows_is_refused_before_any_work(folder: Path, data: str, asked: list[str]) -> None:
    with pytest.raises(SimoError, match="unknown"):
        rows_of(paper_tables.main, folder, data, "unknown", *asked)
    assert not (folder / "unknown.json").exists()


def test_a_run_that_was_killed_goes_on_and_adds_no_row_twice(
    folder: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Workbench.aligned_row, Counter[str]()

    def killed(self: Workbench, *given: object, **more: object) -> ResultRow:
        calls["aligned"] += 1
        if calls["aligned"] == 3:
            raise KeyboardInterrupt
        return whole(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Workbench, "aligned_row", killed)
    with pytest.raises(KeyboardInterrupt):
        rows_of(paper_tables.main, folder, data, "killed")
    before = read_results(folder / "killed.json")[1]
    after = rows_of(paper_tables.main, folder, data, "killed")
    assert [row.to_json() for row in after[: len(before)]] == [row.to_json() for row in before]
    assert len({row.recipe for row in after}) == len(after) == 12
    assert calls["aligned"] == 5  # two rows, the killed one, and the two that were missing
    monkeypatch.setattr(Workbench, "experts", property(lambda self: pytest.fail("nothing was missing")))
    assert rows_of(paper_tables.main, folder, data, "killed") == after


def test_a_budget_is_a_run_of_its_own_at_every_number_of_steps(folder: Path, data: str) -> None:
    rows = rows_of(budget.main, folder, data, "budget")
    steps = {}
    for row in rows:
        steps.setdefault(row.method, []).append(row.steps)
    assert steps == {
        "experts": [4],
        "task-arithmetic": [0],
        "joint-equal": [3, 6],
        "task-arithmetic+head": [1, 3],
        "task-arithmetic+surgery": [2],
        "task-arithmetic+surgery-closed-form": [0],
    }
    found = json.loads((folder / "budget-crossings.json").read_text())
    assert [axis["axis"] for axis in found] == ["steps", "seconds", "seconds with experts"]
    curves = ["joint-equal", *(f"task-arithmetic+{name}" for name in ("head", "surgery", "surgery-closed-form"))]
    for axis in found:
        assert list(axis["curves"]) == curves
        assert [pair["curves"] for pair in axis["pairs"]] == [list(pair) for pair in combinations(curves, 2)]
    joint = [max(row.fit_seconds, LEAST["seconds"]) for row in rows if row.method == "joint-equal"]
    assert [point["x"] for point in found[1]["curves"]["joint-equal"]] == pytest.approx(sorted(joint))


def test_more_images_hold_the_fewer_and_labels_are_those_of_the_same_images(folder: Path, data: str) -> None:
    rows = rows_of(sample_efficiency.main, folder, data, "samples")
    counts = [2, 4, SPLITS["calibration"]]  # 50 are more than there are
    for method in ("weight-average+surgery-closed-form", "weight-average+head", "joint-equal"):
        same = [row for row in rows if row.method == method]
        assert [used(row) for row in same] == counts
        labels = [0] * 3 if "surgery" in method else counts
        assert [row.labels for row in same] == labels
    table = sample_efficiency.table(rows)
    assert "2 images | 4 images | 6 images" in table


def test_every_subset_is_merged_and_those_of_the_sizes_asked_for_are_trained_jointly(folder: Path, data: str) -> None:
    rows = rows_of(scaling_tasks.main, folder, data, "scaling")
    subsets = [*combinations(TASKS, 2), TASKS]
    for method in ("experts", "weight-average", "weight-average+surgery-closed-form"):
        assert [row.tasks for row in rows if row.method == method] == subsets
    assert [row.tasks for row in rows if row.method == "joint-equal"] == subsets[:3]
    assert "−61" in scaling_tasks.table(rows, "taskonomy")  # the paper's 0.39 at two tasks
    assert "paper" not in scaling_tasks.table(rows, None)


def test_a_mistake_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: budget.main(["--data", "images:somewhere"]))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no recipe for 'images' (recipes: cityscapes, nyuv2, ")


def test_data_that_are_not_there_are_told_before_any_work(folder: Path) -> None:
    recipe, output = write_recipe(folder / "missing.yaml"), folder / "missing.json"
    with pytest.raises(SimoError, match="nowhere"):
        budget.main(["--data", "folder:nowhere", "--recipe", str(recipe), "--output", str(output)])
    assert not output.exists()


def test_a_row_is_what_the_library_gives_step_by_step(folder: Path, data: str, paper: list[ResultRow]) -> None:
    base = sm.load_base("test_vit", "random")
    config = sm.TrainConfig(**SMALL["training"], seed=0)
    train, calibration, test = (sm.open_dataset(data, split, TASKS) for split in ("train", "calibration", "test"))
    experts = [sm.train_expert(train, task, config, base) for task in TASKS]
    merged = sm.merge(experts, sm.WeightAverage(), base)
    found = {row.method: row for row in paper}
    joint = sm.train_joint(train, TASKS, sm.JointConfig(**SMALL["training"] | {"steps": 4}), base)
    for model, name in (
        (merged, "weight-average"),
        (
            sm.realign(merged, experts, calibration, sm.LinearSurgery(rank=4, stretch="none")),
            "weight-average+surgery-closed-form",
        ),
        (joint, "joint-equal"),
        (sm.realign(joint, experts, drawn(calibration, 0), HeadRealignment(steps=2)), "joint-equal+head"),
    ):
        row = sm.evaluate(model, test, experts)
        assert found[name].delta_ratio == pytest.approx(row.delta_ratio, abs=1e-3), name
        assert found[name].delta_eq2 == pytest.approx(row.delta_eq2, abs=1e-3), name


def test_loading_is_measured_by_itself_and_under_training_steps(
    folder: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "loading.json"
    asked = [
        "--data",
        data,
        "--encoder",
        "test_vit",
        "--workers",
        "0",
        "--batches",
        "1",
        "--rounds",
        "1",
        "--steps",
        "1",
    ]
    data_loading.main([*asked, "--batch-size", "2", "--precision", "float32", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert {row["table"] for row in rows} == {"parts", "throughput", "training"}
    assert {row["stage"] for row in rows if row["table"] == "training"} == {"decoder", "decoder and encoder"}
    assert "times plain" in capsys.readouterr().out
