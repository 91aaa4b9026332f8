"""Rows are written one by one, found again, and never mixed with those of other versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.rows import Rows
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow, read_results
from tests.benchmarks.worlds import made_up


def never() -> ResultRow:
    raise AssertionError("it was made again")


def test_a_row_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Rows(path).add("key", lambda: made_up("ties", -1))
    again = Rows(path)
    again.add("key", never)
    again.add("other", lambda: made_up("ties", -2, seed=1))
    assert [(row.recipe, row.delta_ratio) for row in read_results(path)[1]] == [("key", -1), ("other", -2)]


def test_a_row_of_another_recipe_gives_way_to_the_new_one(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json")
    rows.add("old", lambda: made_up("ties", -1))
    rows.add("new", lambda: made_up("ties", -2))
    assert [row.recipe for row in rows.rows] == ["new"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 5}, {"options": {"fitted_to": 16}}, {"protocol": "mtan@2"}, {"split": "val"}]
)
def test_rows_that_can_stand_side_by_side_stay(tmp_path: Path, change: dict[str, object]) -> None:
    rows = Rows(tmp_path / "rows.json")
    rows.add("one", lambda: made_up("ties", -1))
    rows.add("two", lambda: made_up("ties", -1, **change))
    assert [row.recipe for row in rows.rows] == ["one", "two"]


def test_what_a_method_refuses_is_told_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(tmp_path / "rows.json")

    def refuse() -> ResultRow:
        raise SimoError("slerp merges two experts")

    rows.add("key", refuse)
    assert rows.refused == ["slerp merges two experts"]
    assert "refused: slerp merges two experts" in capsys.readouterr().out
    rows.add("key", lambda: made_up("slerp", -1))
    assert len(rows.rows) == 1


def test_a_file_of_other_versions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Rows(path).add("key", lambda: made_up("ties", -1))
    content = json.loads(path.read_text())
    content["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    with pytest.raises(SimoError, match=r"measured with torch 1\.0, this run has"):
        Rows(path)


def test_rows_of_files_older_than_their_newest_fields_are_read() -> None:
    record = made_up("ties", -1).to_json()
    for name in ("steps", "capture_seconds", "recipe"):
        del record[name]
    row = ResultRow.from_json(record)
    assert (row.steps, row.recipe) == (0, "")
    assert row.capture_seconds != row.capture_seconds  # NaN
