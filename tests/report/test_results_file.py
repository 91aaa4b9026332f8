from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from simo_merge import results
from simo_merge.errors import SimoError
from simo_merge.report import Report
from simo_merge.results import ResultRow, environment, read_results, replace_text, write_results


def without_nan(row: ResultRow) -> object:
    return json.loads(json.dumps(asdict(row)).replace("NaN", "null"))


def test_rows_and_environment_survive_a_round_trip(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "new folder" / "results.json"
    write_results(path, {"python": "3.11", "note": "größer"}, report.rows)
    read_environment, rows = read_results(path)
    assert read_environment == {"python": "3.11", "note": "größer"}
    assert [without_nan(row) for row in rows] == [without_nan(row) for row in report.rows]
    assert isinstance(rows[0].tasks, tuple)


def test_a_missing_number_is_null_on_disk_and_nan_in_memory(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "results.json"
    unmeasured = next(row for row in report.rows if math.isnan(row.delta_ratio))
    write_results(path, {}, [unmeasured])

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)["rows"][0]
    assert record["delta_ratio"] is None
    assert record["per_task"]["depth"]["abs"] is None
    (row,) = read_results(path)[1]
    assert math.isnan(row.delta_ratio)
    assert math.isnan(row.per_task["depth"]["abs"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "3"}, "labels"),
        ({"labels": 2.5}, "labels"),
        ({"images": -1}, "images is -1"),
        ({"evaluated": -1}, "evaluated is -1"),
        ({"image_size": [126]}, "image_size"),
        ({"surprise": 1}, "surprise"),
        ({"tasks": ["segmentation"]}, "same tasks"),
        ({"per_task": {"segmentation": {"miou": "high"}}}, r"per_task\.segmentation\.miou"),
        ({"method": None}, "method"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, report: Report, change: dict[str, object], message: str) -> None:
    record = report.rows[0].to_json() | change
    with pytest.raises(SimoError, match=message):
        ResultRow.from_json(record)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"environment": {}, "rows": [record]}))
    with pytest.raises(SimoError, match=message) as caught:
        read_results(path)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named(report: Report) -> None:
    record = report.rows[0].to_json()
    del record["seed"]
    with pytest.raises(SimoError, match="seed"):
        ResultRow.from_json(record)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}', '{"environment": {}, "rows": [], "more": 1}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SimoError, match=r"results\.json"):
        read_results(path)


def test_a_missing_file_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="cannot be read"):
        read_results(tmp_path / "nothing.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    replace_text(path, "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_environment_says_what_a_result_depends_on() -> None:
    found = environment()
    assert set(results.PACKAGES) | {"python", "platform", "cpu", "device", "threads", "date"} == set(found)
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["device"] == "cpu"
    assert int(found["threads"]) >= 1


def test_rows_of_files_written_before_a_field_was_added_are_read(report: Report) -> None:
    record = report.rows[0].to_json()
    for added in ("evaluated", "image_size", "options", "merge_seconds", "merge_peak_bytes"):
        del record[added]
    row = ResultRow.from_json(record)
    assert (row.evaluated, row.image_size, row.options) == (0, None, {})
    assert math.isnan(row.merge_seconds)
