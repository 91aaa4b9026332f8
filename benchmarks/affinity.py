"""Is task affinity true? Every measure against what merging, re-alignment and joint training do to each pair and set.

    python benchmarks/affinity.py                            # rooms, six tasks, seeds of the recipe
    python benchmarks/affinity.py --joint                    # pairs are also trained jointly, for a few steps
    python benchmarks/affinity.py --measures cka task-vector-cosine --seeds 0
    python benchmarks/affinity.py --tables published.csv     # affinities that others measured, for comparison
    python benchmarks/affinity.py --quick

Every set of two and more tasks is merged, re-aligned and evaluated. Each measure is then asked which pairs lose least,
which partner is best for each task, which sets lose least, and how to group the tasks into a few encoders; the answers
are compared with what was measured (rank correlations, p-values from permuted task labels, regret). Experts are trained
once. The results file has a row for each set; beside it stand `-measures.json`, with every matrix of every seed, and
`-agreement.json`, with the answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from bench.agreement import agreements, complete, measured_gains_of, regrets, without
from bench.command_line import Run, parse, run
from bench.recipe import Affinity, Recipe, Weighted
from bench.rows import Rows, joint_cell, row_key
from bench.shelf import Shelf
from bench.tables import markdown, mean_spread
from bench.workbench import Workbench
from scaling_tasks import subsets
from simo_merge.affinity import MEASURES, AffinityMatrix, AffinityOptions, affinity, read_table
from simo_merge.affinity.grouping import SubsetValues
from simo_merge.errors import SimoError, nearest
from simo_merge.results import replace_text


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse("affinity", __doc__ or "", arguments, options)
    part = asked.recipe.affinity
    if part is None:
        raise SimoError(f"the recipe {asked.recipe.name} has no affinity; add the key `affinity`")
    names = measures_of(part, asked.given.measures)
    tables = tables_of(part, asked.given.tables)
    if asked.given.joint and part.joint is None:
        raise SimoError(f"the recipe {asked.recipe.name} names no row of joint training in affinity.joint")
    rows, kept = asked.rows(), Kept(beside(asked.output, "measures"))
    kinds = {}
    for seed in asked.recipe.seeds:
        shelf = asked.shelf(seed, part.tasks)
        kinds = shelf.test.tasks
        measure(shelf, part, rows, asked.given.joint)
        kept.add(
            seed, row_key(shelf, part.tasks, **cell_of(part)), names, lambda missing, s=shelf: said(s, part, missing)
        )
    said_of = {seed: kept.of(seed, names) | tables for seed in asked.recipe.seeds}
    answers = compared(asked, part, rows, said_of, kinds)
    replace_text(beside(asked.output, "agreement"), json.dumps(answers, indent=1) + "\n")
    print("\n" + pair_table(answers) + "\n" + agreement_table(answers) + "\n" + regret_table(answers))
    return 1 if rows.refused else 0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measures", nargs="+", metavar="NAME", help="instead of the recipe's")
    parser.add_argument("--tables", nargs="+", type=Path, metavar="FILE", help="CSV tables of others' affinities")
    parser.add_argument("--joint", action="store_true", help="train every pair jointly, too")


def measures_of(part: Affinity, given: Sequence[str] | None) -> list[str]:
    wanted = given or part.measures or list(MEASURES)
    unknown = [name for name in wanted if name not in MEASURES]
    if unknown:
        raise SimoError(
            f"unknown measure(s) {', '.join(unknown)}; known: {', '.join(MEASURES)}{nearest(unknown, MEASURES)}"
        )
    return [name for name in MEASURES if name in wanted]


def tables_of(part: Affinity, given: Sequence[Path] | None) -> dict[str, AffinityMatrix]:
    """Affinities of the recipe's tasks that others measured, by the names of their files."""
    found = {}
    for path in given or ():
        if path.stem in MEASURES or path.stem in found:
            raise SimoError(f"{path}: there is a measure {path.stem} already; a table is called as its file, rename it")
        found[path.stem] = read_table(path, part.tasks)
    return found


def beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}-{what}.json")


# -- what happens when tasks share an encoder -------------------------------------------------------------------------


def measure(shelf: Shelf, part: Affinity, rows: Rows, joint: bool) -> None:
    """All sets of a seed: merged, re-aligned and, where asked for, pairs trained jointly."""
    recipe = shelf.recipe
    merge, align = recipe.merge(part.merge), part.align
    cell = {"merge": merge.model_dump(mode="json")}
    rows.add(row_key(shelf, part.tasks, row="experts"), Workbench(shelf, part.tasks).experts_row)
    for tasks in subsets(part.tasks):
        bench = Workbench(shelf, tasks)
        rows.add(row_key(shelf, tasks, **cell), lambda bench=bench: bench.merged_row(merge))
        key = row_key(shelf, tasks, **cell, align=align.model_dump(mode="json"))
        rows.add(key, lambda bench=bench: bench.aligned_row(merge, align))
        row = small_joint(recipe, part)
        if joint and row is not None and len(tasks) == 2:
            key = row_key(shelf, tasks, **joint_cell(recipe, row))
            rows.add(key, lambda bench=bench, row=row: bench.joint_row(row))


def small_joint(recipe: Recipe, part: Affinity) -> Weighted | None:
    """Joint training with the few steps that a pair gets; its name tells how many."""
    return None if part.joint is None else recipe.weighted(part.joint).model_copy(update={"steps": part.joint_steps})


# -- what measures say ------------------------------------------------------------------------------------------------


class Kept:
    """Matrices of every seed in a file: those that are there are not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seeds: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def add(self, seed: int, key: str, names: Sequence[str], make: Any) -> None:
        """Compute what is missing of these names; what was computed by another recipe is dropped."""
        found = self.seeds.get(str(seed), {})
        if found.get("recipe") != key:
            found = {"recipe": key, "measures": {}}
        missing = [name for name in names if name not in found["measures"]]
        if not missing:
            return
        found["measures"] |= {name: matrix.to_json() for name, matrix in make(missing).items()}
        self.seeds[str(seed)] = found
        replace_text(self.path, json.dumps(self.seeds, indent=1) + "\n")

    def of(self, seed: int, names: Sequence[str]) -> dict[str, AffinityMatrix]:
        found = self.seeds[str(seed)]["measures"]
        return {name: AffinityMatrix.from_json(found[name]) for name in names}


def said(shelf: Shelf, part: Affinity, names: Sequence[str]) -> dict[str, AffinityMatrix]:
    """Measures from the calibration images without labels and, where they need some, the validation split."""
    experts = [shelf.expert(task) for task in part.tasks]
    merge = shelf.recipe.merge(part.merge).made()
    chosen = AffinityOptions(**part.options, merge=merge)
    return affinity(
        experts,
        shelf.base,
        shelf.calibration,
        shelf.validation,
        names,
        chosen,
        shelf.device,
        shelf.precision,
        shelf.seed,
    )


def cell_of(part: Affinity) -> dict[str, Any]:
    return {"affinity": part.options, "merge": part.merge}


# -- whether it is true -----------------------------------------------------------------------------------------------


def compared(
    asked: Run,
    part: Affinity,
    rows: Rows,
    said_of: Mapping[int, Mapping[str, AffinityMatrix]],
    kinds: Mapping[str, Any],
) -> dict[str, Any]:
    """Agreement with each kind of sharing, and the regret of groupings after re-alignment."""
    seeds, row = asked.recipe.seeds, small_joint(asked.recipe, part)
    joint = None if row is None else row.name
    matrices, gone = complete(said_of)
    aligned = f"{part.merge}+{part.align.name}"
    answers: dict[str, Any] = {
        "tasks": list(part.tasks),
        "seeds": list(seeds),
        "left_out": gone,
        "seconds": {n: sum(matrices[s][n].seconds for s in seeds) / len(seeds) for n in matrices[seeds[0]]},
        "measured": {},  # the seeds of which there is a row of every set, by method; joint training may have fewer
        "agreement": {},
    }
    whole = {frozenset(tasks) for tasks in subsets(part.tasks)}
    pairs = {group for group in whole if len(group) == 2}
    for method, wanted in ((aligned, whole), (part.merge, whole), (joint, pairs)):
        measured = {seed: measured_gains_of(rows.rows, method, seed, kinds) for seed in seeds} if method else {}
        measured = {seed: gains for seed, gains in measured.items() if wanted <= gains.keys()}
        if measured:
            answers["measured"][method] = sorted(measured)
            answers["agreement"][method] = agreements(matrices, measured)
            if method == aligned:
                answers["regret"] = regrets(matrices, measured, part.encoders)
                answers["pairs"] = beside_each(part.tasks, measured)
                left_out = part.tasks if len(part.tasks) > 3 else ()  # two tasks have but one pair
                answers["without"] = {
                    task: agreements(*without(task, matrices, measured), asked=("pairs",)) for task in left_out
                }
    return answers


def beside_each(tasks: Sequence[str], measured: Mapping[int, SubsetValues]) -> list[dict[str, Any]]:
    """A record for each ordered pair: delta in percent of the second task beside the first, for each seed."""
    return [
        {
            "source": source,
            "target": target,
            "by_seed": [gains[frozenset((source, target))][target] for _, gains in sorted(measured.items())],
        }
        for source, target in permutations(tasks, 2)
    ]


QUESTIONS = ("pairs", "directed", "partners", "subsets")


def agreement_table(answers: Mapping[str, Any], coefficient: str = "spearman", minus: str = "-") -> str:
    """A line for each measure: mean correlation over seeds with its spread, and p, for each question."""
    tables = []
    for method, records in answers["agreement"].items():
        same = [record for record in records if record["coefficient"] == coefficient]
        asked = [name for name in QUESTIONS if any(record["question"] == name for record in same)]
        lines = []
        for name in dict.fromkeys(record["measure"] for record in same):
            found = {record["question"]: record for record in same if record["measure"] == name}
            cells = [f"{mean_spread(found[q]['by_seed'], 2, minus=minus)}, {p_text(found[q])}" for q in asked]
            lines.append([f"`{name}`", found[asked[0]]["needs"], *cells, f"{answers['seconds'][name]:.0f}"])
        symbol = "ρ" if coefficient == "spearman" else "τ"
        head = ["measure", "needs", *(f"{question}: {symbol}, p" for question in asked), "seconds"]
        seeds = len(answers["measured"][method])
        tables.append(f"Against `{method}`, {seeds} seed{'s' if seeds > 1 else ''}:\n\n" + markdown(head, lines))
    return "\n".join(tables)


def p_text(record: Mapping[str, Any]) -> str:
    """p, and in brackets that of all measures together."""
    return f"{record['p']:.3f} ({record['p_family']:.3f})"


def regret_table(answers: Mapping[str, Any], minus: str = "-") -> str:
    """A line for each measure: mean delta of its grouping, and what it loses against the best one."""
    records = answers.get("regret", [])
    rooms = list(dict.fromkeys(record["encoders"] for record in records))
    lines = []
    for name in dict.fromkeys(record["measure"] for record in records):
        cells = [f"`{name}`" if name in MEASURES else name]
        for room in rooms:
            found = next(r for r in records if r["measure"] == name and r["encoders"] == room)
            cells += [mean_spread([found["delta"]], 2, minus=minus), mean_spread(found["by_seed"], 2, False, minus)]
        lines.append(cells)
    head = ["grouping by", *(text for k in rooms for text in (f"K = {k}: Δ, %", "regret, points"))]
    return markdown(head, lines)


def pair_table(answers: Mapping[str, Any], minus: str = "-") -> str:
    """A line for each task, a column for each partner beside it: the task's delta, mean over seeds and spread."""
    tasks = answers["tasks"]
    found = {(record["target"], record["source"]): record["by_seed"] for record in answers.get("pairs", [])}
    lines = [
        [task, *("" if task == other else mean_spread(found.get((task, other), []), minus=minus) for other in tasks)]
        for task in tasks
    ]
    return markdown(["Δ of, %", *(f"beside {task}" for task in tasks)], lines)


def without_table(answers: Mapping[str, Any], coefficient: str = "spearman", minus: str = "-") -> str:
    """A line for each measure, a column for each task that is left out: the correlation over the other tasks' pairs."""
    found = {
        (record["measure"], task): record
        for task, records in answers.get("without", {}).items()
        for record in records
        if record["coefficient"] == coefficient
    }
    tasks = list(dict.fromkeys(task for _, task in found))
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        cells = [f"{mean_spread([r['value']], 2, minus=minus)}, {p_text(r)}" for r in (found[name, t] for t in tasks)]
        lines.append([f"`{name}`", found[name, tasks[0]]["needs"], *cells])
    return markdown(["measure", "needs", *(f"without {task}" for task in tasks)], lines)


def grouping_table(answers: Mapping[str, Any], measure: str = "realigned-features") -> str:
    """For each number of encoders and seed the best grouping that was measured, and the one that a measure chooses."""
    records = answers.get("regret", [])
    chosen = [record for record in records if record["measure"] == measure]
    best = {record["encoders"]: record for record in records if record["measure"] == "best"}
    lines = []
    for record in chosen:
        room = record["encoders"]
        for place, (seed, lost) in enumerate(zip(record["seeds"], record["by_seed"], strict=True)):
            both = (best[room]["groups"][place], record["groups"][place])
            texts = [" / ".join(" + ".join(group) for group in groups) for groups in both]
            lines.append([str(room), str(seed), *texts, mean_spread([lost], 2, False)])
    return markdown(["K", "seed", "best measured", f"by `{measure}`", "regret, points"], lines)


if __name__ == "__main__":
    run(main)
