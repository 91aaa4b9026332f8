"""The tables of the SIMO paper (arXiv 2504.11268), with our methods beside its own and its numbers beside ours.

    python benchmarks/paper_tables.py                                    # rooms
    python benchmarks/paper_tables.py --data nyuv2:/data/nyuv2           # table 1; cityscapes: 2, taskonomy: 3
    python benchmarks/paper_tables.py --data rooms --encoder vit_small_patch16_dinov3 --seeds 0 --tasks depth normals
    python benchmarks/paper_tables.py --merges ties regmean --weightings nash-mtl --quick

Experts, joint training under several weightings, merges, and each merge with every re-alignment, as the recipe of the
data set says (benchmarks/recipes). Scores are on the test split; options are chosen, and re-alignments fitted, on the
splits that the recipe names for it. The last table is that of costs (table 4).

The results file holds every finished row, so a run that was ended goes on with what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bench.command_line import Run, parse, run
from bench.paper import cost_table, score_table
from bench.recipe import Align, Merge, Recipe, Weighted
from bench.rows import Rows, joint_cell, row_key
from bench.workbench import Workbench


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("paper", __doc__ or "", arguments, options)
    recipe = chosen(asked)
    rows = asked.rows()
    for seed in recipe.seeds:
        measure(Workbench(asked.shelf(seed, recipe.tasks)), recipe, rows)
    found = rows.of(recipe.tasks)
    print("\n" + score_table(found, recipe.table) + "\n" + cost_table(found, recipe.table))
    return 1 if rows.refused else 0


def measure(bench: Workbench, recipe: Recipe, rows: Rows, images: int | None = None) -> None:
    """All rows of a seed; re-alignments are fitted to the first `images` calibration images, or to all."""
    fitted = {} if images is None else {"images": images}
    shelf, tasks = bench.shelf, bench.tasks
    rows.add(row_key(shelf, tasks, row="experts"), bench.experts_row)
    rows.add(row_key(shelf, tasks, row="base"), bench.base_row)
    for align in recipe.chosen(recipe.align_experts):
        key = row_key(shelf, tasks, row="experts", align=align.model_dump(mode="json"), **fitted)
        rows.add(key, lambda align=align: bench.aligned_experts_row(align, images))
    for joint in (row for row in recipe.joint.rows if row.trained_with(bench.seed)):
        cell = joint_cell(recipe, joint)
        rows.add(row_key(shelf, tasks, **cell), lambda joint=joint: bench.joint_row(joint))
        for align in recipe.chosen(joint.align):
            key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"), **fitted)
            rows.add(key, lambda joint=joint, align=align: bench.aligned_joint_row(joint, align, images))
    for merge in recipe.merges:
        cell = {"merge": merge.model_dump(mode="json")}
        rows.add(row_key(shelf, tasks, **cell), lambda merge=merge: bench.merged_row(merge))
        for align in recipe.alignments(merge):
            key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"), **fitted)
            rows.add(key, lambda merge=merge, align=align: bench.aligned_row(merge, align, images=images))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default: those of the recipe")
    parser.add_argument("--merges", nargs="*", metavar="NAME", help="rows of the recipe, or merge methods")
    parser.add_argument("--realignments", nargs="*", metavar="NAME", help="rows of the recipe, or re-alignments")
    parser.add_argument("--weightings", nargs="*", metavar="NAME", help="joint rows of the recipe, or weightings")


def chosen(asked: Run) -> Recipe:
    """The recipe with the tasks and rows that were asked for; what it does not have is taken with its defaults.

    Raises:
        SimoError: a name that is neither a row of the recipe nor a method.
    """
    given, recipe = asked.given, asked.recipe
    merges = {row.name: row for row in recipe.merges}
    aligns = {row.name: row for row in recipe.align}
    joint = {row.weighting: row for row in reversed(recipe.joint.rows)} | {row.name: row for row in recipe.joint.rows}
    changes: dict[str, Any] = {} if given.tasks is None else {"tasks": tuple(given.tasks)}
    if given.merges is not None:
        changes["merges"] = tuple(merges.get(name) or Merge(method=name) for name in given.merges)
    if given.realignments is not None:
        changes["align"] = tuple(aligns.get(name) or Align(method=name) for name in given.realignments)
        whole = {"align": None}  # every merge gets what was asked for
        changes["merges"] = tuple(row.model_copy(update=whole) for row in changes.get("merges", recipe.merges))
    if given.weightings is not None:
        rows = tuple(joint.get(name) or Weighted(weighting=name) for name in given.weightings)
        changes["joint"] = recipe.joint.model_copy(update={"rows": rows})
    found = recipe.model_copy(update=changes)
    for merge in found.merges:
        merge.made()
    for align in found.align:
        align.made()
    for row in found.joint.rows:
        found.joint_config(row, 0)
    return found


if __name__ == "__main__":
    run(main)
