"""Writes the tables of README.md and docs/ from the results files in benchmarks/results.

    python benchmarks/draw_tables.py            # bring the documents up to date
    python benchmarks/draw_tables.py --check    # exit with 1 where a document is not what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; no number in it is typed by hand.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import affinity
import budget
import inference
import realign_quality
import realign_speed
import sample_efficiency
import scaling_tasks
from bench.agreement import KINDS
from bench.paper import RETRAINED, cost_table, score_table, verdict_table
from bench.recipe_file import RECIPES, read_recipe
from bench.tables import markdown, mean_spread
from simo_merge.affinity import MEASURES
from simo_merge.merging import MERGE_METHODS
from simo_merge.merging.describe import describe_method
from simo_merge.realign import REALIGNMENTS
from simo_merge.results import ResultRow, read_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SURGERY = "+surgery-closed-form"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text(encoding="utf-8")
        drawn = PLACE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)
        if drawn != text:
            stale.append(document.relative_to(ROOT))
            if not check:
                document.write_text(drawn, encoding="utf-8")
    for document in stale:
        print(f"{document}: {'not what the results say; run benchmarks/draw_tables.py' if check else 'drawn'}")
    sys.exit(1 if check and stale else 0)


# -- the demo ---------------------------------------------------------------------------------------------------------

DEMO_NAMES = {
    "experts": "experts",
    "base": "pretrained base, experts' decoders",
    "task-arithmetic": "task arithmetic",
    "batch-norm": "+ batch-norm statistics",
    "norm-recalibration": "+ norm recalibration",
    "surgery-closed-form": "+ closed-form surgery",
    "surgery-stretched": "**+ closed-form surgery, stretched**",
    "surgery-from-closed-form": "+ surgery as published, few steps from the closed form",
    "surgery": "+ surgery as published",
    "head": "+ decoders re-trained with labels",
}


def demo(file: str) -> str:
    measured, rows = read_results(RESULTS / file)
    lines = []
    for row in rows:
        values = [row.per_task[t] for t in ("segmentation", "depth", "normals")]
        firsts = [next(iter(v.values())) for v in values]
        fitted = "+" in row.method
        lines.append(
            [
                DEMO_NAMES[row.method.rpartition("+")[2]],
                f"{firsts[0]:.3f}".lstrip("0"),
                f"{firsts[1]:.3f}".lstrip("0"),
                f"{firsts[2]:.1f}",
                "0" if row.method == "experts" else mean_spread([row.delta_ratio]),
                str(row.labels),
                f"{row.encoder_passes:.3g}",
                f"{row.fit_seconds:.1f}" if fitted else "",
            ]
        )
    head = ["method", "mIoU ↑", "depth L1, m ↓", "normals, ° ↓", "Δ, % ↑", "labels", "encoder passes", "fitted in, s"]
    told = f"Merge: {measured['merge']}. One forward pass of the multi-task model takes {measured['forward pass']}, in "
    told += f"float32 on {measured['cpu']} ({measured['threads']} threads); scores in {measured['precision']}."
    return markdown(head, lines) + "\n" + told + "\n"


# -- merge quality ----------------------------------------------------------------------------------------------------


def merge_quality(tasks: int) -> str:
    rows = [row for row in read_results(RESULTS / "merge_quality.json")[1] if len(row.tasks) == tasks]
    found = []
    for name in dict.fromkeys(row.method for row in rows if "+" not in row.method):
        plain = [row for row in rows if row.method == name]
        after = [row for row in rows if row.method == name + SURGERY]
        first = plain[0]
        seconds = [r.merge_seconds for r in plain if math.isfinite(r.merge_seconds)]
        peak = max(r.merge_peak_bytes for r in plain)  # what the heap has left from before hides some of it
        cells = [
            f"`{name}`" if name not in ("experts", "base") else name,
            "0" if name == "experts" else spread(plain),
            spread(after),
            f"{statistics.median(seconds):.1f}" if seconds and name != "base" else "",
            f"{peak / 1e6:.0f}" if peak else "",
            str(first.images),
            str(first.labels),
            f"{first.encoder_passes:.3g}",
            str(len({row.seed for row in plain})),
        ]
        rank = math.inf if name == "experts" else statistics.fmean(row.delta_ratio for row in after)
        found.append((rank, cells))
    head = ["method", "Δ, %", "Δ after surgery, %", "merge, s", "memory, MB", "images", "labels", "passes", "seeds"]
    return markdown(head, [cells for _, cells in sorted(found, key=lambda pair: -pair[0])])


def spread(rows: Sequence[ResultRow]) -> str:
    return mean_spread(row.delta_ratio for row in rows)


# -- choosing without labels ------------------------------------------------------------------------------------------


def merge_selection() -> str:
    rows = json.loads((RESULTS / "merge_selection.json").read_text(encoding="utf-8"))["rows"]
    lines = []
    for row in rows:
        merged = "as merged" if row["rank"] is None else f"after surgery of rank {row['rank']}"
        cells = [f"`{row['method']}`", merged, str(len(row["candidates"])), f"{row['spearman']:.2f}".replace("-", "−")]
        cells += [options_of(row["best"]), options_of(row["chosen"]), f"{row['lost']:.1f}"]
        cells += [f"{row['seconds_with_labels']:.0f}", f"{row['seconds_label_free']:.0f}", str(row["seed"])]
        lines.append(cells)
    head = ["method", "candidates", "number", "Spearman's ρ", "best by Δ", "chosen without labels", "Δ lost, points"]
    return markdown([*head, "by Δ, s", "without labels, s", "seed"], lines)


def options_of(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


# -- the methods ------------------------------------------------------------------------------------------------------


def merge_methods() -> str:
    lines = []
    for name, method in sorted(MERGE_METHODS.items()):
        facts = describe_method(name)
        papers = dict.fromkeys(re.findall(r"\b(\d{4}\.\d{5})\b", method.__doc__ or ""))
        options = ", ".join(f"{option} {default}" for option, default in facts.options.items())
        needs = "" if facts.needs == "nothing" else facts.needs
        links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        cells = [f"`{name}`", facts.purpose, options, needs, "1" if facts.one_pass else "one a task", links]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return markdown(["method", "what it does", "options", "needs", "passes", "paper"], lines)


# -- re-alignments ----------------------------------------------------------------------------------------------------


def realignments() -> str:
    lines = []
    for name, method in REALIGNMENTS.items():
        options = ", ".join(f"`{o.name}={o.default!r}`" for o in inspect.signature(method).parameters.values())
        needs = "yes" if method().needs_labels else ""
        passes = "T or fewer" if method.task_specific else "1"
        lines.append([f"`{name}`", f"`{method.__name__}`", options, needs, passes])
    return markdown(["`--method`", "class", "options and what they are unless told", "labels", "passes"], lines)


# -- affinity ---------------------------------------------------------------------------------------------------------


def affinity_measures() -> str:
    lines = []
    for name, measure in MEASURES.items():
        direction = "none" if measure.symmetric else "s to t"
        lines.append([f"`{name}`", measure.needs, direction, measure.summary])
    return markdown(["measure", "needs", "direction", "what it is"], lines)


def affinity_agreement(name: str) -> str:
    spearman, kendall = (affinity.agreement_table(affinity_answers(name), kind, "−") for kind in KINDS)
    return f"{spearman}\n<details><summary>The same by Kendall's τ</summary>\n\n{kendall}\n</details>\n"


def affinity_answers(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"affinity-{name}-agreement.json").read_text(encoding="utf-8"))
    return found


def affinity_regret(name: str) -> str:
    return affinity.regret_table(affinity_answers(name), "−")


def affinity_pairs(name: str) -> str:
    return affinity.pair_table(affinity_answers(name), "−")


def affinity_without(name: str) -> str:
    return affinity.without_table(affinity_answers(name), minus="−")


def affinity_groups(name: str) -> str:
    return affinity.grouping_table(affinity_answers(name))


# -- merge speed ------------------------------------------------------------------------------------------------------


def merge_speed() -> str:
    rows = json.loads((RESULTS / "merge_speed.json").read_text(encoding="utf-8"))["rows"]
    lines = []
    for row in rows:
        here = row["contestant"] == "simo_merge"
        cells = [row["model"], str(row["experts"]), row["method"], row["contestant"]]
        if "error" in row:
            lines.append([*cells, *[""] * 5, str(row["error"]).partition("\n")[0][:60]])
            continue
        cells += [f"{row['wall_s']:.2f}", f"{row['cpu_s']:.1f}", f"{row['private_mib']:.0f}", f"{row['import_s']:.1f}"]
        cells += [f"{100 * row['share_of_floor']:.0f} %", "" if here else f"{row['times_simo_merge']:.1f}"]
        lines.append(cells)
    head = [
        "model",
        "T",
        "method",
        "program",
        "wall, s",
        "CPU, s",
        "private, MiB",
        "imports, s",
        "of read + write speed",
    ]
    return markdown([*head, "times simo_merge's wall"], lines)


# -- against joint training -------------------------------------------------------------------------------------------


VERDICT = {
    "experts": "the experts, one by one",
    "experts+head": f"the experts, {RETRAINED}",
    "tsv-m": "merged (`tsv-m`)",
    "tsv-m+surgery-stretched": "**merged and re-aligned without labels**",
    "emr": "merged with masks (`emr`)",
    "tsv-m+head": f"merged, {RETRAINED}",
}


def verdict(name: str) -> str:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    rows = [row for row in read_results(RESULTS / f"paper-{name}.json")[1] if row.tasks == recipe.tasks]
    return verdict_table(rows, VERDICT)


def paper(name: str) -> str:
    rows = read_results(RESULTS / f"paper-{name}.json")[1]
    table = read_recipe(RECIPES / f"{name}.yaml").table
    return score_table(rows, table) + "\n" + cost_table(rows, table)


def budget_crossings(name: str) -> str:
    return markdown(budget.HEAD, budget.lines(budget.crossings(read_results(RESULTS / f"budget-{name}.json")[1])))


def samples(name: str) -> str:
    return sample_efficiency.table(read_results(RESULTS / f"samples-{name}.json")[1])


def scaling(name: str) -> str:
    rows = read_results(RESULTS / f"scaling-{name}.json")[1]
    return scaling_tasks.table(rows, read_recipe(RECIPES / f"{name}.yaml").table)


def realign(name: str) -> str:
    recipe = read_recipe(RECIPES / "realign" / f"{name}.yaml")
    return realign_quality.report(read_results(RESULTS / f"realign-{name}.json")[1], recipe)


def realign_speeds(of_device: str = "") -> str:
    found = json.loads((RESULTS / f"realign_speed{of_device}.json").read_text(encoding="utf-8"))
    return realign_speed.table(found) + "\n" + realign_speed.verdicts(found).replace("\n", "; ") + ".\n"


def inference_costs(of_device: str = "") -> str:
    rows = json.loads((RESULTS / f"inference{of_device}.json").read_text(encoding="utf-8"))["rows"]
    return inference.table(rows) + "\n" + inference.told(rows) + "\n"


BY_RECIPE = {
    "affinity": affinity_agreement,
    "affinity-regret": affinity_regret,
    "affinity-pairs": affinity_pairs,
    "affinity-groups": affinity_groups,
    "affinity-without": affinity_without,
    "paper": paper,
    "verdict": verdict,
    "budget": budget_crossings,
    "samples": samples,
    "scaling": scaling,
}

TABLES: dict[str, Callable[[], str]] = {
    "affinity-measures": affinity_measures,
    "demo": lambda: demo("demo.json"),
    "merge-methods": merge_methods,
    "realignments": realignments,
    "merge-quality-3": lambda: merge_quality(3),
    "merge-quality-5": lambda: merge_quality(5),
    "merge-selection": merge_selection,
    "merge-speed": merge_speed,
    "realign-speed": realign_speeds,
    "realign-speed-cuda": partial(realign_speeds, "-cuda"),
    "inference": inference_costs,
    "inference-cuda": partial(inference_costs, "-cuda"),
    **{
        f"{kind}-{recipe.stem}": partial(draw, recipe.stem)
        for kind, draw in BY_RECIPE.items()
        for recipe in RECIPES.glob("*.yaml")
    },
    **{f"realign-{recipe.stem}": partial(realign, recipe.stem) for recipe in (RECIPES / "realign").glob("*.yaml")},
}

if __name__ == "__main__":
    main()
