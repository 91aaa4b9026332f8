"""Published numbers follow from each other, and name rows that the recipes make."""

from __future__ import annotations

from itertools import product

import pytest

from bench.paper import cost_table, score_table, verdict_table
from bench.published import PublishedRow, PublishedTable, published_table, read_published
from bench.recipe_file import RECIPES, read_recipe
from simo_merge.errors import SimoError
from tests.benchmarks.worlds import made_up

TABLES = read_published().tables
ROWS = [
    pytest.param(table, row, id=f"{name}: {row.paper}")
    for name, table in TABLES.items()
    for row in table.rows
    if row.delta is not None
]


def delta(table: PublishedTable, row: PublishedRow, ours: tuple[float, ...], alone: tuple[float, ...]) -> float:
    """100 / T sum of (ratio to the expert - 1), with the printed percentage where the paper contradicts its cell."""
    terms = []
    for task, score, expert in zip(table.tasks, ours, alone, strict=True):
        ratio = score / expert if task.higher_is_better else expert / score
        terms.append(100 * (row.printed[task.name] / 100 - 1 if task.name in row.printed else ratio - 1))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_the_printed_delta_follows_from_the_cells_as_far_as_they_are_rounded(
    table: PublishedTable, row: PublishedRow
) -> None:
    alone = table.row("experts")
    assert alone is not None
    half = [0.5 * 10.0**-task.digits for task in table.tasks]
    reached = []
    for sign in (-1, 1):  # all cells of the row at one end of their interval, the experts' at the other
        signs = [sign if task.higher_is_better else -sign for task in table.tasks]
        cells = tuple(c + s * h for c, s, h in zip(row.cells, signs, half, strict=True))
        experts = tuple(c - s * h for c, s, h in zip(alone.cells, signs, half, strict=True))
        reached.append(delta(table, row, cells, experts))
    rounded = 0.05 + 0.05  # delta, and the percentages that it is a mean of
    assert min(reached) - rounded <= row.delta <= max(reached) + rounded
    assert delta(table, row, row.cells, alone.cells) == pytest.approx(row.delta, abs=0.7)


def test_only_two_rows_contradict_themselves() -> None:
    printed = {(name, row.method): row.printed for name, table in TABLES.items() for row in table.rows if row.printed}
    assert printed == {
        ("taskonomy", "task-arithmetic"): {"normals": 25.6},
        ("taskonomy", "task-arithmetic+representation"): {"edge_texture": 68.3},
    }


@pytest.mark.parametrize("name", TABLES)
def test_the_recipe_of_a_published_table_has_its_tasks_and_its_rows(name: str) -> None:
    recipe, table = read_recipe(RECIPES / f"{name}.yaml"), TABLES[name]
    assert recipe.table == name
    assert recipe.tasks == tuple(task.name for task in table.tasks)
    merges = [merge.name for merge in recipe.merges]
    made = {"experts", *(row.name for row in recipe.joint.rows), *merges}
    made |= {f"{merge}+{align.name}" for merge, align in product(merges, recipe.align)}
    missing = {row.method for row in table.rows} - made
    assert all(method.endswith("+representation") for method in missing)


def test_an_unknown_table_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SimoError, match="nyuv2, cityscapes, taskonomy"):
        published_table("nyu")
    assert published_table(None) is None


# -- tables -----------------------------------------------------------------------------------------------------------

NYU = ("segmentation", "depth", "normals")


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def nyu_row(method: str, change: float, seed: int = 0):  # type: ignore[no-untyped-def]
    scores = {"segmentation": {"miou": 0.6}, "depth": {"abs": 0.25 + seed / 100}, "normals": {"mean": 20.0}}
    return made_up(method, change, tasks=NYU, per_task=scores, seed=seed)


def test_a_published_number_stands_beside_ours_and_nowhere_else() -> None:
    rows = [nyu_row("experts", 0), nyu_row("task-arithmetic", -20), nyu_row("task-arithmetic", -22, 1)]
    rows += [nyu_row("task-arithmetic+norm-recalibration", -9)]
    head, _, experts, merged, aligned, *rest = cells_of(score_table(rows, "nyuv2"))
    assert head[:8] == [
        "method", "segmentation miou ↑", "paper", "depth abs ↓", "paper", "normals mean ↓", "paper", "Δ, % ↑",
    ]  # fmt: skip
    assert experts[1:9] == ["60.00", "70.79", "0.2500", "0.2314", "20.00", "18.02", "0", ""]
    assert merged[1:5] == ["60.00 ± 0.00", "65.78", "0.2550 ± 0.0071", "0.4171"]
    assert merged[7:9] == ["−21.0 ± 1.4", "−27.5"]
    assert [aligned[2], aligned[4], aligned[6], aligned[8]] == [""] * 4
    assert ["TIES (paper alone)", "", "62.62"] in [line[:3] for line in rest]
    assert all(len(line) == len(head) for line in rest)


def test_data_that_the_paper_does_not_have_has_no_column_for_it() -> None:
    head, *_ = cells_of(score_table([nyu_row("experts", 0)], None))
    assert "paper" not in head


def test_a_metric_that_differs_from_the_papers_is_named() -> None:
    table = TABLES["taskonomy"]
    scores = {task.name: {"mean" if task.name == "normals" else "abs": 0.5} for task in table.tasks}
    row = made_up("experts", 0, tasks=tuple(scores), per_task=scores)
    head, *_ = cells_of(score_table([row], "taskonomy"))
    assert head[head.index("normals mean ↓") + 1] == "paper (abs)"


def test_costs_stand_beside_the_papers_where_it_has_them() -> None:
    rows = [made_up("experts", 0, steps=100, labels=450), made_up("task-arithmetic+head", -1, steps=60, images=90)]
    head, _, experts, head_row = cells_of(cost_table(rows, "taskonomy"))
    assert head == ["method", "steps", "paper", "trained parameters", "paper", "images", "paper", "labels", "fit, s"]
    assert experts[:8] == ["experts", "100", "21800", "10", "90.1 M", "450", "16000", "450"]
    assert head_row[:7] == ["task-arithmetic+head", "60", "14900", "10", "17.3 M", "90", "4000"]
    assert "paper" not in cost_table(rows, "nyuv2")


def test_the_verdict_has_delta_of_each_task_against_the_experts_of_the_same_seed() -> None:
    def row(method: str, miou: float, depth: float, seed: int, delta: float):  # type: ignore[no-untyped-def]
        scores = {"segmentation": {"miou": miou, "pixel_accuracy": 0.1}, "depth": {"abs": depth, "rel": 0.9}}
        return made_up(method, delta, tasks=("segmentation", "depth"), per_task=scores, seed=seed)

    rows = [row("experts", 0.5, 0.4, 0, 0), row("experts", 0.4, 0.5, 1, 0)]
    rows += [row("joint-equal", 0.55, 0.5, 0, -5), row("joint-equal-25-steps", 0.1, 0.9, 0, -60)]
    rows += [row("joint-equal+head", 0.55, 0.5, 0, -5), row("joint-equal+head-distilled", 0.55, 0.5, 0, -5)]
    rows += [row("tsv-m+best", 0.45, 0.32, 0, 7.5), row("tsv-m+best", 0.42, 0.5, 1, 2.5)]
    head, _, *lines = cells_of(verdict_table(rows, {"experts": "experts", "tsv-m+best": "ours", "absent": "absent"}))
    assert head == ["", "Δ, % ↑", "segmentation, %", "depth, %", "labels", "encoder passes", "seeds"]
    assert lines[0][:4] == ["experts", "0", "0", "0"]
    assert lines[1][:4] == ["ours", "+5.0 ± 3.5", "−2.5 ± 10.6", "+12.5 ± 17.7"]
    assert lines[2][:4] == ["joint-equal", "−5.0", "+10.0", "−20.0"]
    told = ["joint-equal, decoders re-trained with labels", "joint-equal+head-distilled"]
    assert [line[0] for line in lines[3:]] == told
    assert [line[-1] for line in lines] == ["2", "2", "1", "1", "1"]  # what trained for other steps has no row
    assert verdict_table([], {}) == ""
