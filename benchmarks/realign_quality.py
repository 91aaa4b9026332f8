"""How good re-alignment is: merges, re-alignments, controls, and the number of calibration images.

    python benchmarks/realign_quality.py                                        # rooms, seeds of the recipe
    python benchmarks/realign_quality.py --recipe benchmarks/recipes/realign/rooms-5-tasks.yaml
    python benchmarks/realign_quality.py --data folder:DIR --recipe benchmarks/recipes/realign/furnished.yaml
    python benchmarks/realign_quality.py --seeds 0 --quick

Experts, the unmerged base, joint training with as many encoder updates as one expert had, merges
with every re-alignment, all fitted to the same number of images; then the curve over the number of images. Controls:
re-alignments of the base with nothing merged; batch-norm statistics alone; all weights of the merge trained with the
same images, on labels or on the experts' predictions; joint training kept to the experts' features, from the base.

The best method, at any number of images, is chosen on the validation split; what is told of it is of the test split.
The results file holds every finished row, so a run that was ended goes on with what is missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import paper_tables
import sample_efficiency
from bench.checks import best_label_free, checks, used
from bench.command_line import parse, run
from bench.curves import cost
from bench.paper import score_table
from bench.recipe import Merge, Quality, Recipe
from bench.recipe_file import RECIPES
from bench.rows import Rows, row_key
from bench.tables import markdown, mean_spread
from bench.workbench import Workbench
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow

UNMERGED = Merge(method="task-arithmetic", label="base", options={"scale": 0.0})


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("realign", __doc__ or "", arguments, lambda parser: None, RECIPES / "realign")
    recipe, quality = asked.recipe, asked.recipe.quality
    if quality is None:
        raise SimoError(f"the recipe {recipe.name} has no quality; add the key `quality`")
    rows = asked.rows()
    for seed in recipe.seeds:
        bench = Workbench(asked.shelf(seed), recipe.tasks, quality.images, validated=True)
        measure(bench, recipe, quality, rows)
    print("\n" + report(rows.rows, recipe))
    return 1 if rows.refused else 0


def measure(bench: Workbench, recipe: Recipe, quality: Quality, rows: Rows) -> None:
    """All rows of a seed."""
    paper_tables.measure(bench, recipe, rows, quality.images)
    shelf, tasks, images = bench.shelf, bench.tasks, quality.images
    for name in quality.base:
        align = recipe.alignment(name)
        cell = {"merge": UNMERGED.model_dump(mode="json"), "align": align.model_dump(mode="json"), "images": images}
        rows.add(row_key(shelf, tasks, **cell), lambda align=align: bench.aligned_row(UNMERGED, align, images=images))
    if quality.fine_tuned is not None:
        merge = recipe.merge(quality.fine_tuned)
        for labels in (True, False):
            cell = {"merge": merge.model_dump(mode="json"), "fine_tuning": quality.fine_tuning, "labels": labels}
            key = row_key(shelf, tasks, **cell, images=images)
            rows.add(key, lambda labels=labels: bench.fine_tuned_row(merge, images, labels))
    if recipe.samples is not None:
        sample_efficiency.measure(bench, recipe.samples, rows)


def table_rows(rows: Sequence[ResultRow], images: int) -> list[ResultRow]:
    """Those of the table: fits to this number of images, and what is not fitted to calibration images."""
    return [row for row in rows if "+" not in row.method or used(row) == images]


def curve_rows(rows: Sequence[ResultRow], merge: str, images: int) -> list[ResultRow]:
    """Those of the curve: re-alignments of this merge that were fitted to other numbers of images than the table's."""
    found = [row for row in rows if row.method.startswith(f"{merge}+")]
    others = {row.method for row in found if used(row) != images}
    return [row for row in found if row.method in others]


def report(rows: Sequence[ResultRow], recipe: Recipe) -> str:
    """The table, the curve and the checks, as markdown.

    Raises:
        SimoError: a recipe without the key `quality`.
    """
    if recipe.quality is None:
        raise SimoError(f"the recipe {recipe.name} has no quality; add the key `quality`")
    joint = recipe.joint.rows[0].name
    images = min(recipe.quality.images, largest(rows))
    found = table_rows(rows, images)
    parts = [score_table(found, None)]
    if recipe.samples is not None:
        line = mean_spread(row.delta_ratio for row in rows if row.method == joint)
        parts.append(sample_efficiency.table(curve_rows(rows, recipe.samples.merge, images)))
        parts.append(f"{joint}, with the labels of the training split: {line} %.\n")
    best = best_label_free(rows)
    jointly = [row for row in rows if row.method == joint]
    if best is not None and jointly:
        lines = [[check.demand, check.measured, check.verdict] for check in checks(rows, best, joint)]
        parts.append(
            f"Best without labels, chosen on the validation split: {best}. From experts to the aligned model "
            f"{_seconds(best.rows(rows))} s; {joint} was trained in {_seconds(jointly)} s.\n"
        )
        parts.append(markdown(["demand", "measured", ""], lines))
    return "\n".join(parts)


def _seconds(rows: Sequence[ResultRow]) -> str:
    """What merge, capture and fit took, or a training; the median over seeds, for a busy machine makes some long."""
    return f"{statistics.median(cost(row, 'seconds') for row in rows):.0f}"


def largest(rows: Sequence[ResultRow]) -> int:
    """The largest number of calibration images that a re-alignment was fitted to; 0 for none."""
    return max((used(row) for row in rows if "+" in row.method), default=0)


if __name__ == "__main__":
    run(main)
