"""Delta against what it costs, in steps and in seconds, and where the curves cross.

    python benchmarks/budget.py                                          # rooms, seeds of the recipe
    python benchmarks/budget.py --data nyuv2:/data/nyuv2 --seeds 0
    python benchmarks/budget.py --quick

Joint training, head re-alignment with labels and surgery by gradient each have a budget of steps; closed-form surgery
is a point. Every point is a run of its own with its whole schedule, not a stop on the way of a longer one. Steps are of
each decoder or tap where these are fitted apart. Seconds are those of the merge with the choice of its options, of
capturing features, and of the fit; "seconds with experts" adds the experts' training for all but joint training.

Rows are in the results file, and beside it, in NAME-crossings.json, the curves with the costs at which one overtakes
another (bench/curves.py says what is between their points).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.command_line import parse, run
from bench.curves import AXES, curve, meeting
from bench.recipe import Align, Budget
from bench.rows import Rows, joint_cell, row_key
from bench.tables import text_table
from bench.workbench import Workbench
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow, replace_text


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("budget", __doc__ or "", arguments, lambda parser: None)
    budget = asked.recipe.budget
    if budget is None:
        raise SimoError(f"the recipe {asked.recipe.name} has no budget; add the key `budget`")
    rows = asked.rows()
    for seed in asked.recipe.seeds:
        measure(Workbench(asked.shelf(seed)), budget, rows)
    found = crossings(rows.rows)
    replace_text(crossings_file(asked.output), json.dumps(found, indent=2) + "\n")
    print("\n" + text_table(HEAD, lines(found)))
    return 1 if rows.refused else 0


def measure(bench: Workbench, budget: Budget, rows: Rows) -> None:
    """All points of a seed."""
    shelf, tasks, recipe = bench.shelf, bench.tasks, bench.recipe
    merge = recipe.merge(budget.merge)
    cell = {"merge": merge.model_dump(mode="json")}
    rows.add(row_key(shelf, tasks, row="experts"), bench.experts_row)
    rows.add(row_key(shelf, tasks, **cell), lambda: bench.merged_row(merge))
    for line in budget.curves:
        for steps in line.steps or (None,):
            if line.method.startswith("joint-"):
                row = recipe.weighted(line.method)
                key = row_key(shelf, tasks, **joint_cell(recipe, row, steps=steps))
                rows.add(key, lambda row=row, steps=steps: bench.joint_row(row, steps))
            else:
                align = Align(method=line.method, options=line.options)
                key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"), steps=steps)
                rows.add(key, lambda align=align, steps=steps: bench.aligned_row(merge, align, steps))


def curves(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """The rows of each curve: joint training and re-alignments, not the bare merge; without what was not measured."""
    found: dict[str, list[ResultRow]] = {}
    for row in rows:
        if not math.isfinite(row.delta_ratio):
            continue
        if row.method.startswith("joint-") or "+" in row.method:
            found.setdefault(row.method, []).append(row)
    return found


def crossings(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """For each axis the curves, and for each pair of them where the lead changes."""
    experts = [row for row in rows if row.method == "experts"]
    found = []
    for axis in AXES:
        points = {name: curve(same, axis, experts) for name, same in curves(rows).items()}
        pairs = [
            {"curves": [a, b], **asdict(meeting(points[a], points[b], (a, b)))} for a, b in combinations(points, 2)
        ]
        drawn = {name: [asdict(point) for point in line] for name, line in points.items()}
        found.append({"axis": axis, "curves": drawn, "pairs": pairs})
    return found


def crossings_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}-crossings.json")


HEAD = ("axis", "curve", "and", "ahead first", "the lead changes at", "ahead at the end")


def lines(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Every pair of curves on every axis, as `HEAD` says."""
    told = []
    for axis in found:
        for pair in axis["pairs"]:
            where = ", ".join(f"{x:.3g}" for x in pair["crossings"]) or "never"
            told.append([axis["axis"], *pair["curves"], pair["ahead"], where, pair["ahead_at_end"]])
    return told


if __name__ == "__main__":
    run(main)
