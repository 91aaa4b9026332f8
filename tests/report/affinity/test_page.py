"""The affinity report on disk: every file, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from simo_merge.affinity import AffinityMatrix, LambdaSweep
from simo_merge.affinity.grouping import group_tasks
from simo_merge.errors import SimoError
from simo_merge.report.affinity import AffinityReport, write_affinity_report
from tests.report.affinity.conftest import TASKS


def test_pictures_tables_values_and_page_are_written(report: AffinityReport, tmp_path: Path) -> None:
    write_affinity_report(tmp_path, report)
    names = ("cosine", "cosine-layers", "transfer", "lambda-curves", "grouping-1", "grouping-2")
    files = [f"pictures/{name}.{ending}" for name in names for ending in ("png", "svg")]
    files += ["tables/cosine.csv", "tables/transfer.csv", "index.html", "affinity.json"]
    assert sorted(files) == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    for path in tmp_path.glob("pictures/*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert len((tmp_path / "tables" / "cosine.csv").read_text().splitlines()) == 1 + 9 + 9


def test_the_values_are_read_back_as_they_were(report: AffinityReport, tmp_path: Path) -> None:
    write_affinity_report(tmp_path, report)
    record = json.loads((tmp_path / "affinity.json").read_text(encoding="utf-8"))
    for name, matrix in report.measures.items():
        assert torch.equal(AffinityMatrix.from_json(record["measures"][name]).values, matrix.values)
    assert report.sweep is not None
    assert torch.equal(LambdaSweep.from_json(record["sweep"]).metrics, report.sweep.metrics)
    assert [found["groups"] for found in record["groupings"]] == [[list(TASKS)], [["seg", "depth"], ["normals"]]]
    assert record["opinions"]["transfer"][1]["encoders"] == 2


def test_the_page_says_the_choice_holds_its_pictures_and_escapes(report: AffinityReport, tmp_path: Path) -> None:
    write_affinity_report(tmp_path, report)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "With 2 encoders: seg + depth | normals." in text
    assert "With 1 encoder: seg + depth + normals." in text
    assert text.count("<svg") == 6
    assert "&lt;fast&gt;" in text
    assert "Cosine &amp; more." in text
    assert not re.search(r"(src|href)=\"(?!#)", text)  # nothing from outside


def test_measures_of_different_tasks_and_groupings_by_none_of_them_are_refused(report: AffinityReport) -> None:
    other = AffinityMatrix("other", ("x", "y"), torch.eye(2), True, "weights")
    with pytest.raises(SimoError, match="got 2 sets"):
        AffinityReport({**report.measures, "other": other})
    with pytest.raises(SimoError, match="groupings by other, which is not among the measures"):
        AffinityReport(report.measures, [group_tasks(other, 1)])
