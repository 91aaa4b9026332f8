"""The tables of the paper from end to end on small copies of its data sets, by the committed recipes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import paper_tables
from bench.recipe_file import read_recipe
from simo_merge.results import ResultRow, read_results
from tests.benchmarks.worlds import shrunk
from tests.trees import cityscapes, nyuv2, taskonomy

TRAINED = {"train": "train", "calibration": "train", "validation": "train"}
BUILDINGS = ("allensville", "stockman", "wiconisco", "ihlen")


def rows_of(name: str, spec: str, folder: Path, recipe: Path) -> list[ResultRow]:
    output = folder / f"{name}.json"
    assert paper_tables.main(["--data", spec, "--recipe", str(recipe), "--output", str(output)]) == 0
    rows = read_results(output)[1]
    merges = [merge.name for merge in read_recipe(recipe).merges]
    assert {"experts", "base", "joint-equal", *merges} <= {row.method for row in rows}
    assert {f"{merges[0]}+surgery-closed-form", f"{merges[0]}+head"} <= {row.method for row in rows}
    assert all(math.isfinite(row.delta_ratio) for row in rows)
    return rows


@pytest.mark.slow
def test_nyuv2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = nyuv2.write_mtan(folder / "nyuv2", nyuv2.make_world())
    recipe = shrunk("nyuv2", folder / "nyuv2.yaml", TRAINED | {"test": "test"})
    rows = rows_of("nyuv2", f"nyuv2:{root}", folder, recipe)
    assert rows[0].tasks == ("segmentation", "depth", "normals")
    assert rows[0].protocol == "simo@4"
    assert "70.79" in capsys.readouterr().out


@pytest.mark.slow
def test_cityscapes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cityscapes.write_mtan(folder / "cityscapes")
    splits = TRAINED | {"test": "val"}
    recipe = shrunk("cityscapes", folder / "cityscapes.yaml", splits, {"disparity": "published"})
    rows = rows_of("cityscapes", f"cityscapes:{root}", folder, recipe)
    assert rows[0].tasks == ("segmentation", "parts", "disparity")
    assert "58.76" in capsys.readouterr().out


@pytest.mark.slow
def test_taskonomy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder / "taskonomy"
    taskonomy.write_official(root, taskonomy.make_world(BUILDINGS))
    splits = {"train": "simo-2504.11268/train", "calibration": "tiny/val", "validation": "tiny/val"}
    recipe = shrunk("taskonomy", folder / "taskonomy.yaml", splits | {"test": "simo-2504.11268/test"})
    rows = rows_of("taskonomy", f"taskonomy:{root}", folder, recipe)
    assert len(rows[0].tasks) == 5
    printed = capsys.readouterr().out
    assert "0.2067" in printed  # its table
    assert "21800" in printed  # its costs


@pytest.mark.slow
def test_rooms(folder: Path) -> None:
    splits = {"train": "train[:6]", "calibration": "calibration[:4]", "validation": "val[:4]", "test": "test[:4]"}
    recipe = shrunk("rooms", folder / "rooms.yaml", splits, {"size": "32x48"})
    rows = rows_of("rooms", "rooms", folder, recipe)
    assert rows[0].split == "test[:4]"
    assert rows[0].evaluated == 4
