"""How well label-free scores rank the options of a merge, against true delta.

    python benchmarks/merge_selection.py                      # seed 0, task arithmetic and TIES
    python benchmarks/merge_selection.py --seeds 0 1 2 --methods task-arithmetic
    python benchmarks/merge_selection.py --quick              # few images, steps and candidates, no result

Every candidate is scored by delta on the validation split, as merged and after closed-form surgery (labels), and by
agreement with the experts' features on the calibration images, as merged and after surgery (no labels). The table gives
Spearman's rho between the label-free score and delta, and the delta that is lost by taking the candidate that the
label-free score prefers. Experts are those of the demo. The results file holds every candidate's scores.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import simo_merge as sm
from bench.command_line import run
from merge_quality import QUICK, QUICK_IMAGES, RECIPE, images_of, train
from simo_merge.results import environment, replace_text
from simo_merge.selection import MethodSelection

TASKS = ("segmentation", "depth", "normals")
RANK = 64
SPACES: dict[str, dict[str, list[Any]]] = {
    "task-arithmetic": {"scale": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]},
    "ties": {"density": [0.1, 0.3, 1.0], "scale": [0.5, 1.0, 1.5]},
}


QUICK_SPACES: dict[str, dict[str, list[Any]]] = {
    "task-arithmetic": {"scale": [0.3, 0.5]},
    "ties": {"scale": [0.5, 1.0]},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(SPACES), help="default: all; task arithmetic with --quick")
    parser.add_argument("--quick", action="store_true", help="few images, steps and candidates; no result")
    parser.add_argument("--output", type=Path, default=Path("results/merge_selection.json"))
    options = parser.parse_args()
    recipe, limit, spaces = RECIPE, None, SPACES
    if options.quick:
        recipe, limit, spaces = QUICK, QUICK_IMAGES, QUICK_SPACES
        options.seeds, options.methods = [0], options.methods or ["task-arithmetic"]
        options.output = options.output.with_stem(options.output.stem + "-quick")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    base = sm.load_base()
    validation, calibration = (images_of(name, TASKS, limit) for name in ("val", "calibration"))
    rows = []
    for seed in options.seeds:
        experts = [train(task, replace(recipe, seed=seed), base, limit) for task in TASKS]
        for name in options.methods or spaces:
            for rank in (None, RANK):
                criteria = (
                    sm.ValidationDelta(validation, rank=rank, calibration=calibration if rank else None),
                    sm.Agreement(calibration, rank=rank),
                )
                truth, free = (
                    sm.select(experts, sm.merge_method(name), spaces[name], c, base, seed=seed) for c in criteria
                )
                rows.append(row(name, seed, rank, truth, free))
                print(line(rows[-1]), flush=True)
                text = json.dumps({"environment": environment(), "rows": rows}, indent=2)
                replace_text(options.output, text + "\n")
    return 0


def row(name: str, seed: int, rank: int | None, truth: MethodSelection, free: MethodSelection) -> dict[str, Any]:
    deltas = {json.dumps(c.options): c.score for c in truth.candidates}
    scores = {json.dumps(c.options): c.score for c in free.candidates}
    return {
        "method": name,
        "seed": seed,
        "data": "rooms",
        "split": "val",
        "tasks": list(TASKS),
        "rank": rank,
        "spearman": sm.rank_agreement(truth, free),
        "best": truth.options,
        "chosen": free.options,
        "lost": max(deltas.values()) - deltas[json.dumps(free.options)],
        "candidates": [{"options": json.loads(key), "delta": deltas[key], "agreement": scores[key]} for key in deltas],
        "seconds_label_free": free.seconds,
        "seconds_with_labels": truth.seconds,
    }


def line(found: dict[str, Any]) -> str:
    when = "as merged" if found["rank"] is None else f"after surgery of rank {found['rank']}"
    return (
        f"seed {found['seed']}  {found['method']:<16} {when:<24} rho {found['spearman']:+.2f}  best {found['best']}  "
        f"chosen {found['chosen']}  lost {found['lost']:.2f} points  ({found['seconds_label_free']:.0f} s without "
        f"labels, {found['seconds_with_labels']:.0f} s with)"
    )


if __name__ == "__main__":
    run(main)
