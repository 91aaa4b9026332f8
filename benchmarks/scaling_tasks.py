"""Delta against the number of tasks that are merged: the first figure of the SIMO paper, before and after re-alignment.

    python benchmarks/scaling_tasks.py                                   # rooms, five tasks, seeds of the recipe
    python benchmarks/scaling_tasks.py --data taskonomy:/data/taskonomy --seeds 0
    python benchmarks/scaling_tasks.py --quick

Every subset of two and more tasks is merged, re-aligned, and trained jointly. The experts are trained once and their
features captured once; options of the merge are chosen for each subset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from bench.command_line import parse, run
from bench.published import read_published
from bench.recipe import Scaling
from bench.rows import Rows, joint_cell, row_key
from bench.shelf import Shelf
from bench.tables import markdown, mean_spread
from bench.workbench import Workbench
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("scaling", __doc__ or "", arguments, lambda parser: None)
    scaling = asked.recipe.scaling
    if scaling is None or len(scaling.tasks) < 2:
        raise SimoError(f"the recipe {asked.recipe.name} has no scaling over two tasks or more; add the key `scaling`")
    rows = asked.rows()
    for seed in asked.recipe.seeds:
        measure(asked.shelf(seed, scaling.tasks), scaling, rows)
    print("\n" + table(rows.rows, asked.recipe.table))
    return 1 if rows.refused else 0


def measure(shelf: Shelf, scaling: Scaling, rows: Rows) -> None:
    """All subsets of a seed."""
    recipe = shelf.recipe
    merge = recipe.merge(scaling.merge)
    cell = {"merge": merge.model_dump(mode="json")}
    for tasks in subsets(scaling.tasks):
        bench = Workbench(shelf, tasks)
        rows.add(row_key(shelf, tasks, row="experts"), bench.experts_row)
        rows.add(row_key(shelf, tasks, **cell), lambda bench=bench: bench.merged_row(merge))
        for align in scaling.align:
            key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"))
            rows.add(key, lambda bench=bench, align=align: bench.aligned_row(merge, align))
        for name in scaling.joint if len(tasks) in (scaling.joint_sizes or (len(tasks),)) else ():
            row = recipe.weighted(name)
            key = row_key(shelf, tasks, **joint_cell(recipe, row))
            rows.add(key, lambda bench=bench, row=row: bench.joint_row(row))


def subsets(tasks: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every subset of two and more, small ones first."""
    for size in range(2, len(tasks) + 1):
        yield from combinations(tasks, size)


def table(rows: Sequence[ResultRow], published: str | None = None) -> str:
    """Mean and spread of delta over subsets and seeds; in the last line what the paper's figure has, read by eye."""
    sizes = sorted({len(row.tasks) for row in rows})
    lines = []
    for name in dict.fromkeys(row.method for row in rows if row.method != "experts"):
        same = [row for row in rows if row.method == name]
        lines.append([name, *(mean_spread(r.delta_ratio for r in same if len(r.tasks) == size) for size in sizes)])
    figure = read_published().figure
    if published == figure.data:
        seen = dict(zip(figure.tasks, figure.normalised, strict=True))
        lines.append(
            ["task arithmetic (paper)", *(mean_spread([100 * (seen[n] - 1)] if n in seen else [], 0) for n in sizes)]
        )
    return markdown(["method", *(f"{size} tasks" for size in sizes)], lines)


if __name__ == "__main__":
    run(main)
