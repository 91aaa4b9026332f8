"""The affinity benchmark from end to end, on a data set that is small enough for it."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import affinity
from simo_merge.affinity import MEASURES, AffinityMatrix
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow, read_results
from tests.benchmarks.worlds import write_recipe

TASKS = ("segmentation", "depth", "normals")
JOINT = "joint-equal-3-steps"
METHODS = ("weight-average", "weight-average+surgery-closed-form")


@pytest.fixture(scope="module")
def output(folder: Path, data: str) -> Path:
    recipe, output = write_recipe(folder / "affinity.yaml"), folder / "affinity.json"
    assert affinity.main(["--data", data, "--recipe", str(recipe), "--output", str(output), "--joint"]) == 0
    return output


def answers(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(affinity.beside(output, "agreement").read_text())
    return found


def rows(output: Path) -> list[ResultRow]:
    return read_results(output)[1]


def test_every_set_is_merged_and_re_aligned_and_pairs_are_trained_jointly(output: Path) -> None:
    sets = [*combinations(TASKS, 2), TASKS]
    for method in METHODS:
        assert [row.tasks for row in rows(output) if row.method == method] == sets
    joint = [row for row in rows(output) if row.method == JOINT]
    assert [row.tasks for row in joint] == sets[:3]
    assert all(row.steps == 3 for row in joint)


def test_every_measure_is_kept_and_compared_with_all_ways_to_share(output: Path) -> None:
    kept = json.loads(output.with_name("affinity-measures.json").read_text())["0"]["measures"]
    assert set(kept) == set(MEASURES)
    assert AffinityMatrix.from_json(kept["cka"]).tasks == TASKS
    found = answers(output)
    assert list(found["agreement"]) == [*reversed(METHODS), JOINT]
    compared = set(MEASURES) - set(found["left_out"])
    for records in found["agreement"].values():
        assert {record["measure"] for record in records} == compared
        assert {record["question"] for record in records} == {"pairs", "directed", "partners"}
        assert all(0 < record["p"] <= record["p_family"] <= 1 for record in records)
    regret = {record["measure"]: record["regret"] for record in found["regret"]}
    assert set(regret) == compared | {"best", "any grouping", "one encoder"}
    assert min(regret.values()) == regret["best"] == 0


def test_nothing_is_measured_twice(output: Path, folder: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = output.read_bytes(), answers(output)
    monkeypatch.setattr(affinity, "said", lambda *_: pytest.fail("nothing was missing"))
    arguments = ["--data", data, "--recipe", str(folder / "affinity.yaml"), "--output", str(output)]
    assert affinity.main([*arguments, "--joint"]) == 0
    assert (output.read_bytes(), answers(output)) == before
    assert affinity.main([*arguments, "--measures", "cka", "transfer"]) == 0  # of those that are kept
    assert {record["measure"] for record in answers(output)["agreement"][METHODS[1]]} <= {"cka", "transfer"}


def test_tables_have_a_line_for_each_measure(output: Path, folder: Path, data: str) -> None:
    arguments = ["--data", data, "--recipe", str(folder / "affinity.yaml"), "--output", str(output)]
    assert affinity.main(arguments) == 0
    found = answers(output)
    text = affinity.agreement_table(found)
    assert "Against `weight-average+surgery-closed-form`, 1 seed:" in text
    assert text.count("| `cka` |") == 3
    regret = affinity.regret_table(found)
    assert "| grouping by | K = 2: Δ, % | regret, points |" in regret
    assert "| any grouping |" in regret
    beside = {(record["target"], record["source"]): record["by_seed"] for record in found["pairs"]}
    experts = {task: row.per_task[task] for row in rows(output) if row.method == "experts" for task in row.tasks}
    pair = next(row for row in rows(output) if row.method == METHODS[1] and row.tasks == ("segmentation", "depth"))
    miou, error = pair.per_task["segmentation"]["miou"], pair.per_task["depth"]["abs"]
    assert beside["segmentation", "depth"] == pytest.approx([100 * (miou / experts["segmentation"]["miou"] - 1)])
    assert beside["depth", "segmentation"] == pytest.approx([100 * (experts["depth"]["abs"] / error - 1)])
    line = next(line for line in affinity.pair_table(found).splitlines() if line.startswith("| depth |"))
    assert line == f"| depth | {beside['depth', 'segmentation'][0]:+.1f} |  | {beside['depth', 'normals'][0]:+.1f} |"


def test_the_chosen_grouping_stands_beside_the_best_one(output: Path, folder: Path, data: str) -> None:
    arguments = ["--data", data, "--recipe", str(folder / "affinity.yaml"), "--output", str(output)]
    assert affinity.main(arguments) == 0
    found = answers(output)
    (line,) = affinity.grouping_table(found, "cka").splitlines()[2:]
    by = {record["measure"]: record for record in found["regret"]}
    texts = [" / ".join(" + ".join(group) for group in by[name]["groups"][0]) for name in ("best", "cka")]
    assert line == f"| 2 | 0 | {texts[0]} | {texts[1]} | {by['cka']['regret']:.2f} |"


def test_the_table_without_a_task_has_a_column_for_each_that_is_left_out() -> None:
    record = {"measure": "cka", "needs": "images", "coefficient": "spearman", "by_seed": [0.25, 0.75]}
    records = [record | {"value": 0.5, "p": 0.01, "p_family": 0.04}]
    records.append(records[0] | {"coefficient": "kendall", "value": 0.9})
    found = {"without": {"depth": records, "normals": [records[0] | {"value": -0.5}]}}
    assert affinity.without_table(found).splitlines() == [
        "| measure | needs | without depth | without normals |",
        "| --- | --- | --- | --- |",
        "| `cka` | images | +0.50, 0.010 (0.040) | -0.50, 0.010 (0.040) |",
    ]


def test_joint_training_may_have_fewer_seeds_than_the_merges(
    output: Path, folder: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, kept = (json.loads(path.read_text()) for path in (output, affinity.beside(output, "measures")))
    merged = [row for row in measured["rows"] if row["method"] != JOINT]
    seeds = folder / "seeds.json"
    seeds.write_text(json.dumps(measured | {"rows": measured["rows"] + [row | {"seed": 1} for row in merged]}))
    kept = {seed: {**kept["0"], "recipe": "key"} for seed in ("0", "1")}
    affinity.beside(seeds, "measures").write_text(json.dumps(kept))
    monkeypatch.setattr(affinity, "measure", lambda *_: None)
    monkeypatch.setattr(affinity, "row_key", lambda *_, **__: "key")
    arguments = ["--data", data, "--recipe", str(folder / "affinity.yaml"), "--output", str(seeds), "--seeds", "0", "1"]
    assert affinity.main(arguments) == 0
    found = answers(seeds)
    assert found["measured"] == {METHODS[1]: [0, 1], METHODS[0]: [0, 1], JOINT: [0]}
    counts = {method: len(records[0]["by_seed"]) for method, records in found["agreement"].items()}
    assert counts == {METHODS[1]: 2, METHODS[0]: 2, JOINT: 1}
    assert "Against `joint-equal-3-steps`, 1 seed:" in affinity.agreement_table(found)
    assert "Against `weight-average`, 2 seeds:" in affinity.agreement_table(found)


def test_affinities_of_others_are_asked_the_same_questions(output: Path, folder: Path, data: str) -> None:
    table = folder / "published.csv"
    table.write_text("source,normals,depth,curvature,segmentation\nnormals,,3,1,2\ndepth,1,,1,2\ncurvature,1,1,,1\n"
                     "segmentation,5,4,1,\n")  # fmt: skip
    arguments = ["--data", data, "--recipe", str(folder / "affinity.yaml"), "--output", str(output)]
    assert affinity.main([*arguments, "--measures", "cka", "--tables", str(table)]) == 0
    found = answers(output)
    assert {record["measure"] for record in found["agreement"][METHODS[1]]} == {"cka", "published"}
    assert "published" in {record["measure"] for record in found["regret"]}
    assert "| `published` | labels |" in affinity.agreement_table(found)
    with pytest.raises(SimoError, match=r"there is a measure cka already; .* rename it"):
        affinity.main([*arguments, "--tables", str(table.rename(folder / "cka.csv"))])


def test_wrong_names_are_refused_before_any_work(folder: Path, data: str) -> None:
    recipe, output = write_recipe(folder / "wrong.yaml"), folder / "wrong.json"
    with pytest.raises(SimoError, match=r"unknown measure\(s\) ckaa; known: "):
        affinity.main(["--data", data, "--recipe", str(recipe), "--output", str(output), "--measures", "ckaa"])
    without = write_recipe(folder / "without.yaml", {"affinity": None})
    with pytest.raises(SimoError, match="has no affinity; add the key `affinity`"):
        affinity.main(["--data", data, "--recipe", str(without), "--output", str(output)])
    assert not output.exists()
