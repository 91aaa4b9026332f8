"""The type that every measure gives: its checks, its files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simo_merge import SimoError
from simo_merge.affinity import AffinityMatrix

NAN = math.nan


def matrix() -> AffinityMatrix:
    return AffinityMatrix(
        "transfer",
        ("a", "b"),
        torch.tensor([[1.0, NAN], [0.1, 1.0]], dtype=torch.float64),
        symmetric=False,
        needs="labels",
        profile={"block 3": torch.tensor([[1.0, 0.25], [-2.0, 1.0]])},
        images=5,
        labels=4,
        seconds=1.5,
    )


def test_a_matrix_comes_back_from_json_as_it_was_with_nan_as_null() -> None:
    text = json.dumps(matrix().to_json(), allow_nan=False)
    assert "null" in text
    found = AffinityMatrix.from_json(json.loads(text))
    assert torch.equal(found.values.nan_to_num(7), matrix().values.nan_to_num(7))
    assert found.values.dtype == torch.float64
    assert torch.equal(found.profile["block 3"], matrix().profile["block 3"])
    assert (found.name, found.tasks, found.symmetric, found.needs) == ("transfer", ("a", "b"), False, "labels")
    assert (found.images, found.labels, found.seconds) == (5, 4, 1.5)


def test_a_csv_file_has_a_row_for_every_ordered_pair_and_layer(tmp_path: Path) -> None:
    matrix().save_csv(tmp_path / "tables" / "transfer.csv")
    rows = list(csv.DictReader((tmp_path / "tables" / "transfer.csv").open()))
    assert len(rows) == 2 * 4
    assert rows[1] == {"source": "a", "target": "b", "layer": "", "value": ""}
    assert rows[6] == {"source": "b", "target": "a", "layer": "block 3", "value": "-2.0"}


def test_a_pair_is_asked_for_by_name() -> None:
    assert matrix().of("b", "a") == pytest.approx(0.1)
    assert math.isnan(matrix().mutual()[0, 1])
    with pytest.raises(SimoError, match=r"no task 'c'; measured were a, b"):
        matrix().of("a", "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("a",)}, "two tasks or more"),
        ({"tasks": ("a", "a")}, "each once"),
        ({"tasks": ("a", "b", "c")}, r"shape \(2, 2\), expected \(3, 3\)"),
        ({"needs": "luck"}, "needs is 'luck'"),
        ({"values": torch.full((2, 2), math.inf)}, "infinity"),
        ({"symmetric": True}, "called symmetric"),
        ({"symmetric": True, "values": torch.tensor([[1.0, 0.5], [0.4, 1.0]])}, "called symmetric"),
        ({"profile": {"block 1": torch.zeros(3)}}, "profile at block 1"),
    ],
)
def test_what_cannot_be_an_affinity_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        replace(matrix(), **change)


@pytest.mark.parametrize("record", [{}, {"name": "x"}, {**matrix().to_json(), "colour": 1}])
def test_a_record_without_its_fields_or_with_others_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(SimoError, match="no affinity matrix"):
        AffinityMatrix.from_json(record)


@pytest.mark.parametrize("values", [3, [["a"]], [[1, 2], [3]]])
def test_values_that_are_no_matrix_are_refused(values: object) -> None:
    with pytest.raises(SimoError, match="cannot be read"):
        AffinityMatrix.from_json({**matrix().to_json(), "values": values})
