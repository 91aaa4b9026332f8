"""Affinities that somebody else measured, from a table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simo_merge.affinity import read_table
from simo_merge.errors import SimoError

TABLE = "source, depth,normals ,keypoints\nnormals,0.7,1,\nkeypoints,nan,-2e-1,1\n\ndepth,1.0,0.4,0.3\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "published.csv"
    path.write_text("\ufeff" + TABLE, encoding="utf-8")
    return path


def test_a_row_is_the_source_and_a_column_the_target_whatever_the_order_of_rows(file: Path) -> None:
    found = read_table(file)
    assert (found.name, found.tasks, found.symmetric) == ("published", ("depth", "normals", "keypoints"), False)
    assert found.of("depth", "normals") == 0.4
    assert found.of("normals", "depth") == 0.7
    assert found.of("keypoints", "normals") == -0.2
    assert math.isnan(found.of("normals", "keypoints"))
    assert math.isnan(found.of("keypoints", "depth"))


def test_some_of_its_tasks_are_taken_in_the_order_asked_for(file: Path) -> None:
    found = read_table(file, ("normals", "depth"), name="theirs", needs="weights")
    assert (found.name, found.tasks, found.needs) == ("theirs", ("normals", "depth"), "weights")
    assert found.values.tolist() == [[1.0, 0.7], [0.4, 1.0]]


def test_a_table_that_is_symmetric_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(",a,b\na,,2\nb,2,\n")
    assert read_table(tmp_path / "own.csv").symmetric


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has the columns \(none\) and the rows \(none\); expected the same two tasks or more"),
        (",a,b\na,1,2\n", "the columns a, b and the rows a;"),
        (",a,a\na,1,2\na,1,2\n", "each once"),
        (",a,b\na,1,2\nb,1\n", "the row of b has 1 values, expected 2"),
        (",a,b\na,1,2\nb,one,2\n", "b, a is 'one', expected a number or nothing"),
        (",a,b\na,1,inf\nb,1,2\n", "infinity"),
    ],
)
def test_what_is_no_table_of_affinities_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "wrong.csv").write_text(text)
    with pytest.raises(SimoError, match=said):
        read_table(tmp_path / "wrong.csv")


def test_a_file_or_task_that_is_not_there_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"nothing\.csv cannot be read as a CSV table"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(SimoError, match=r"has no task normal; it has depth, normals, keypoints.*did you mean normals"):
        read_table(file, ("depth", "normal"))
