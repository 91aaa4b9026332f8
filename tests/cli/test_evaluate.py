"""`evaluate`: the table, the result file, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simo_merge.cli.tables import table
from simo_merge.results import ResultRow, read_results
from tests.cli.conftest import Program, Refused

METHOD = "task-arithmetic+surgery-stretched"


def test_a_model_is_compared_with_the_experts_that_it_was_merged_from(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "results.json"
    outcome = program("-q", "evaluate", made / "aligned", "--data", data, "--json", file)
    assert outcome.status == 0
    environment, (experts, aligned) = read_results(file)
    assert {"python", "torch", "cpu", "device", "date"} <= set(environment)
    assert (experts.method, experts.encoder_passes, experts.delta_ratio, experts.labels) == ("experts", 3, 0.0, 6)
    assert (aligned.method, aligned.encoder_passes, aligned.images, aligned.labels) == (METHOD, 1, 6, 0)
    assert aligned.split == "test"
    assert math.isfinite(aligned.delta_ratio)
    assert outcome.out == table([experts, aligned]) + "\n"


def test_without_the_baseline_there_is_no_delta_and_no_expert_is_needed(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    program("-q", "evaluate", made / "aligned", "--data", data, "--no-baseline", "--json", file)
    _, rows = read_results(file)
    assert [row.method for row in rows] == [METHOD]
    assert math.isnan(rows[0].delta_ratio)


def test_the_protocol_and_its_batch_size_are_in_the_rows_and_on_the_screen(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    rows, said = {}, {}
    for name, options in {
        "pooled": [],
        "mtan@4": ["--protocol", "mtan", "--batch-size", "4"],
        "astmt": ["--protocol", "astmt"],
    }.items():
        file = tmp_path / f"{name}.json"
        outcome = program("-q", "evaluate", made / "aligned", "--data", data, "--json", file, *options)
        _, rows[name] = read_results(file)
        said[name] = outcome.out
        assert {row.protocol for row in rows[name]} == {name}
        assert ("measured under the protocol" in outcome.out) == (name != "pooled")
    assert "measured under the protocol mtan@4 (" in said["mtan@4"]
    assert list(rows["astmt"][0].per_task["depth"]) == ["rmse", "log_rmse"]
    assert "depth rmse" in said["astmt"]
    assert rows["mtan@4"][1].per_task["depth"] != rows["pooled"][1].per_task["depth"]
    assert all(row.delta_ratio == 0.0 for row in (rows["astmt"][0], rows["mtan@4"][0]))


def test_an_expert_alone_has_a_row_that_states_its_labels(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    program("-q", "evaluate", made / "depth", "--data", data, "--split", "val", "--json", file)
    _, (row,) = read_results(file)
    assert (row.method, row.split, row.labels, row.tasks) == ("expert-depth", "val", 6, ("depth",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "set", "--split", "gone"], "the splits there are: calibration, test, train, val"),
        (["--data", "nowhere"], "neither a folder nor one of the known formats"),
        (
            ["--data", "images:photos"],
            "the model predicts segmentation, depth, normals, but photos (all) has",
        ),
        (["--data", "set", "--precision", "half"], "unknown precision 'half'"),
        (["--data", "set", "--protocol", "best"], "unknown protocol 'best'; expected one of pooled, mtan"),
        (["--data", "set", "--batch-size", "0"], "--batch-size"),
        (["--data", "set", "--device", "banana"], "unknown device 'banana'"),
        (["--data", "set", "--experts", "depth"], "--experts once for each task"),
        (["--data", "set", "--json", "photos"], "is a folder; give the name of a file to write"),
        (["--data", "set", "--json", "depth/config.json/results.json"], "no folder that you may write to"),
    ],
)
def test_wrong_options_are_refused(
    made: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(made)
    assert said in refused("evaluate", "aligned", *options)


def row(**changes: object) -> ResultRow:
    values: dict[str, object] = {
        "method": "base",
        "data": "rooms",
        "split": "test",
        "protocol": "pooled",
        "tasks": ("depth",),
        "seed": 0,
        "per_task": {"depth": {"abs": 0.25, "rmse": 1.0}},
        "delta_ratio": -12.345,
        "delta_eq2": 6.0,
        "labels": 0,
        "images": 100,
        "encoder_passes": 1,
        "trainable_parameters": 12345,
        "fit_seconds": 1.5,
    }
    return ResultRow(**(values | changes))  # type: ignore[arg-type]


def test_the_table_shows_the_first_metric_of_each_task_in_columns() -> None:
    longer = row(method="a-much-longer-name", per_task={"depth": {"abs": 10.0}})
    head, first, second = table([row(), longer]).splitlines()
    assert " ".join(head.split()) == "method depth abs delta % eq. 2 % labels images passes fitted fit s"
    assert " ".join(first.split()) == "base 0.2500 -12.35 +6.00 0 100 1 12,345 1.50"
    assert len(head) == len(first) == len(second)


def test_the_table_shows_what_could_not_be_measured_as_a_dash_and_no_negative_zero() -> None:
    line = table([row(delta_ratio=math.nan, delta_eq2=-0.0001)]).splitlines()[1]
    assert line.split()[2:4] == ["-", "+0.00"]
