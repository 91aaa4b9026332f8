"""Distributions of features and maps of errors in the report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from simo_merge.errors import SimoError
from simo_merge.report import FeatureCloud, Report, write_report
from simo_merge.report.clouds import SIDE, cloud_plots
from tests.report.conftest import make_cloud


def dots(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M(\S+) (\S+?)h0", path)]


def drawn(clouds: list[FeatureCloud]) -> list[tuple[str, list[tuple[float, float]]]]:
    """The class and the dots of every distribution of the first task."""
    (_, svg), *_ = cloud_plots(clouds)
    return [(path.attrib["class"], dots(path.attrib["d"])) for path in ElementTree.fromstring(svg).iter("path")]


def test_a_task_has_one_drawing_with_a_column_a_tap(report: Report) -> None:
    plots = cloud_plots(report.clouds)
    assert [task for task, _ in plots] == [task.name for task in report.tasks]
    for _, svg in plots:
        tree = ElementTree.fromstring(svg)
        assert [text.text for text in tree.iter("text")] == [
            "merged",
            "re-aligned",
            *(f"block {b}" for b in (3, 6, 9, 12)),
        ]
        assert len(list(tree.iter("path"))) == 4 * 2 * 2
    assert cloud_plots([]) == []


def test_all_points_but_the_outermost_lie_in_the_frame_where_they_belong() -> None:
    cloud = make_cloud("depth", "block 3")
    found = drawn([cloud])
    assert [kind for kind, _ in found] == ["cloud reference", "cloud merged", "cloud reference", "cloud realigned"]
    for _, points in found:
        assert 190 <= len(points) <= 200
        assert all(0 <= x <= SIDE and 0 <= y <= SIDE for x, y in points)
    (_, expert), (_, merged) = found[:2]
    right = np.mean([x for x, _ in merged]) - np.mean([x for x, _ in expert])
    up = np.mean([y for _, y in expert]) - np.mean([y for _, y in merged])
    assert right > 0.2 * SIDE  # its mean is two deviations along the first direction
    assert 0 < up < right  # and a little more along the second


def test_points_keep_their_proportions_and_up_is_more() -> None:
    grid = np.stack(np.meshgrid(np.arange(101), np.arange(101)), axis=-1).reshape(-1, 2).astype(np.float32)
    cloud = FeatureCloud("depth", "block 1", grid, grid, None, (0.5, 0.2))
    found = drawn([cloud])
    assert len(found) == 2  # nothing is re-aligned, so there is one row
    places = dict(zip(map(tuple, grid.astype(int).tolist()), found[0][1], strict=True))
    step = SIDE / 110  # 0 to 100, with a twentieth of that as room at both sides
    for x, y in ((0, 0), (100, 0), (30, 70)):
        assert places[x, y] == pytest.approx(((x + 5) * step, SIDE - (y + 5) * step), abs=0.1)


def test_a_single_point_and_constant_features_can_be_drawn() -> None:
    one = np.zeros((1, 2), dtype=np.float32)
    assert drawn([FeatureCloud("depth", "block 1", one, one, one, (0.0, 0.0))])[0][1] == [(SIDE / 2, SIDE / 2)]


def test_points_of_other_shapes_are_refused() -> None:
    with pytest.raises(SimoError, match=r"\(199, 2\), expected \(200, 2\)"):
        replace(make_cloud("depth", "block 3"), merged=np.zeros((199, 2), dtype=np.float32))


def test_the_page_has_clouds_and_errors_where_there_are_any(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "report.html"
    write_report(path, report)
    html = path.read_text(encoding="utf-8")
    assert html.count('<section id="clouds"') == html.count('<section id="errors"') == 1
    assert 'href="#clouds"' in html
    assert "mean over 60 images" in html
    assert "depth, 0 to 0.5" in html
    assert html.count("where the patches lie") == 2
    write_report(path, replace(report, clouds=(), errors=()))
    html = path.read_text(encoding="utf-8")
    assert 'id="clouds"' not in html
    assert 'id="errors"' not in html
