"""Delta against the number of calibration images.

    python benchmarks/sample_efficiency.py                               # rooms, seeds of the recipe
    python benchmarks/sample_efficiency.py --data nyuv2:/data/nyuv2 --seeds 0
    python benchmarks/sample_efficiency.py --quick

Each re-alignment is fitted to the first n calibration images of an order that the seed draws, so that a larger number
holds the smaller ones. Label-free methods see images alone; head re-alignment and joint training see the labels of the
same images. The merge is one and the same for all numbers: where its coefficient was chosen with images, its row says
with how many.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.checks import read_labels, used
from bench.command_line import parse, run
from bench.recipe import Samples
from bench.rows import Rows, joint_cell, row_key
from bench.tables import markdown, mean_spread
from bench.workbench import Workbench
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("samples", __doc__ or "", arguments, lambda parser: None)
    samples = asked.recipe.samples
    if samples is None:
        raise SimoError(f"the recipe {asked.recipe.name} has no samples; add the key `samples`")
    rows = asked.rows()
    for seed in asked.recipe.seeds:
        measure(Workbench(asked.shelf(seed)), samples, rows)
    print("\n" + table(rows.rows))
    return 1 if rows.refused else 0


def measure(bench: Workbench, samples: Samples, rows: Rows) -> None:
    """All numbers of images of a seed."""
    shelf, tasks, recipe = bench.shelf, bench.tasks, bench.recipe
    whole = len(shelf.calibration)
    merge = recipe.merge(samples.merge)
    cell = {"merge": merge.model_dump(mode="json")}
    rows.add(row_key(shelf, tasks, row="experts"), bench.experts_row)
    rows.add(row_key(shelf, tasks, **cell), lambda: bench.merged_row(merge))
    for count in [*(n for n in sorted(samples.counts) if n < whole), whole]:
        for align in (each for each in samples.align if each.fitted_to(count, whole)):
            key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"), images=count)
            rows.add(key, lambda align=align, count=count: bench.aligned_row(merge, align, images=count))
        for name in samples.joint:
            row = recipe.weighted(name)
            key = row_key(shelf, tasks, **joint_cell(recipe, row, images=count))
            rows.add(key, lambda row=row, count=count: bench.joint_row(row, images=count))


def table(rows: Sequence[ResultRow]) -> str:
    """A line a method, a column a number of images."""
    counts = sorted({used(row) for row in rows} - {0})
    lines = []
    for name in dict.fromkeys(row.method for row in rows if used(row)):
        same = [row for row in rows if row.method == name]
        cells = [mean_spread(row.delta_ratio for row in same if used(row) == count) for count in counts]
        lines.append([name, "yes" if read_labels(same) else "no", *cells])
    return markdown(["method", "labels", *(f"{count} images" for count in counts)], lines)


if __name__ == "__main__":
    run(main)
