"""How good each merge method is on the rooms, before and after closed-form surgery, and what it costs.

    python benchmarks/merge_quality.py                                   # 3 tasks, seeds 0, 1 and 2, every method
    python benchmarks/merge_quality.py --tasks 5 --seeds 0
    python benchmarks/merge_quality.py --methods ties tsv-m --seeds 0 --output my.json
    python benchmarks/merge_quality.py --quick                           # two tasks, few images and steps, no result

For each seed, one expert a task is fine-tuned (or found in the cache) with the recipe of the demo. Every method of the
registry merges them with its default options (the papers'; VARIANTS below lists what is added to them), which every row
records. Scores are on the test split; nothing is fitted or chosen on it.

The results file holds every finished row, so a run that was ended goes on with what is missing. `merge_seconds` is wall
time, what a method learns from images included; `merge_peak_bytes` is the growth of this process's resident memory.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import simo_merge as sm
from bench.command_line import run, start_anew
from bench.parts import open_part
from bench.tables import mean_spread, text_table
from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate, expert_scores, experts_row
from simo_merge.merging import MERGE_METHODS, MergeMethod, TaskArithmetic, merge_method
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import CalibrationFeatures, Features, LinearSurgery, capture
from simo_merge.results import ResultRow, environment, read_results, write_results
from simo_merge.scoring import score_sharing_encoder
from simo_merge.training import TrainConfig
from simo_merge.weights import Base

TASKS = ("segmentation", "depth", "normals", "occlusion_edges", "keypoints")
RECIPE = TrainConfig(decoder_steps=60, steps=240)  # that of the demo, so that they share experts
RANK = 64
QUICK = replace(RECIPE, decoder_steps=2, steps=6)
QUICK_IMAGES = 16
QUICK_METHODS = ("weight-average", "task-arithmetic", "ties", "tsv-m", "regmean", "emr")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "task-arithmetic": {"": {}, "-0.4": {"scale": 0.4}},  # 0.4: what agreement after surgery chooses in the demo
    "adamerging": {"": {}, "-supervised": {"objective": "supervised"}},
    "wudi": {"": {}, "-exact": {"solver": "exact"}},
}
"""Method -> suffix of the row's name -> options, where that is not one row with the defaults."""


def main() -> int:
    options = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    recipe, limit = (QUICK, QUICK_IMAGES) if options.quick else (RECIPE, None)
    tasks = TASKS[: options.tasks]
    base = sm.load_base()
    rows = read_results(options.output)[1] if options.output.exists() else []
    refused = 0
    for seed in options.seeds:
        splits = {name: images_of(name, tasks, limit) for name in ("train", "calibration", "test")}
        experts = [train(task, replace(recipe, seed=seed), base, limit) for task in tasks]
        measure = Measure(tasks, seed, splits, experts, base, {(r.tasks, r.seed, r.method) for r in rows})
        for found in measure.rows(chosen_methods(options.methods)):
            rows.extend(found)
            write_results(options.output, environment(), rows)
            for row in found:
                print(f"seed {seed}  {row.method:<45} {row.delta_ratio:+7.2f}  {row.merge_seconds:8.1f} s", flush=True)
        refused += measure.refused
    print("\n" + table([row for row in rows if row.tasks == tasks]))
    return 1 if refused else 0


class Measure:
    """One seed's experts, with everything that all methods share computed once."""

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int,
        splits: dict[str, DenseDataset],
        experts: list[SingleTaskModel],
        base: Base,
        done: set[tuple[tuple[str, ...], int, str]],
    ) -> None:
        self.tasks, self.seed, self.splits, self.experts, self.base = tuple(tasks), seed, splits, experts, base
        self.done = done
        self.refused = 0

    def rows(self, methods: Sequence[tuple[str, MergeMethod]]) -> Iterator[list[ResultRow]]:
        missing = [
            (label, method)
            for label, method in methods
            if (self.tasks, self.seed, f"{label}+{LinearSurgery.name}") not in self.done
        ]
        if not missing:
            return
        test, calibration = self.splits["test"], self.splits["calibration"]
        baseline = expert_scores(self.experts, test)
        if (self.tasks, self.seed, "experts") not in self.done:
            yield [experts_row(self.experts, test, baseline, self.seed, labels=len(self.splits["train"]))]
        features = {e.task.name: capture(e.encoder, calibration) for e in self.experts}
        if (self.tasks, self.seed, "base") not in self.done:
            unmerged = sm.merge(self.experts, TaskArithmetic(0.0), self.base)
            yield [
                replace(row, method=row.method.replace(TaskArithmetic.name, "base", 1))
                for row in self._scored(unmerged, features, baseline, 0.0, 0, 0, 0)
            ]
        for label, method in missing:
            try:
                with peak_memory() as peak:
                    began = time.perf_counter()
                    merged = sm.merge(self.experts, method, self.base, self._images(method), seed=self.seed)
                    seconds = time.perf_counter() - began
            except SimoError as error:
                print(f"seed {self.seed}  {label:<45} refused: {error}", flush=True)
                self.refused += 1
                continue
            images, labels = self._looked_at(method)
            found = self._scored(merged, features, baseline, seconds, peak(), images, labels)
            yield [replace(row, method=row.method.replace(method.name, label, 1)) for row in found]
            gc.collect()

    def _images(self, method: MergeMethod) -> DenseDataset | None:
        return self.splits["calibration"] if looks_at_images(method) else None

    def _looked_at(self, method: MergeMethod) -> tuple[int, int]:
        images = len(self.splits["calibration"]) if looks_at_images(method) else 0
        return images, images if getattr(method, "needs_labels", False) else 0

    def _scored(
        self,
        merged: MultiTaskModel,
        features: dict[str, Features],
        baseline: dict[str, dict[str, float]],
        seconds: float,
        peak: int,
        images: int,
        labels: int,
    ) -> list[ResultRow]:
        """Rows of the merge alone and of the merge with closed-form surgery; one encoder pass scores both."""
        test, calibration = self.splits["test"], self.splits["calibration"]
        found: list[ResultRow] = []
        for part in parts(merged):
            own = CalibrationFeatures(capture(part.encoder, calibration), {task: features[task] for task in part.tasks})
            aligned = sm.realign(
                part, self.experts, calibration, LinearSurgery(rank=RANK, stretch="none"), own, seed=self.seed
            )
            scores = score_sharing_encoder({"merged": part, "aligned": aligned}, test)
            found += [
                evaluate(m, test, baseline=baseline, seed=self.seed, scores=scores[n])
                for n, m in (("merged", part), ("aligned", aligned))
            ]
        rows = [joined(found[0::2], baseline, test, merged), joined(found[1::2], baseline, test, merged)]
        plain, after = rows
        plain = replace(plain, images=images, labels=labels)
        after = replace(after, images=len(calibration), labels=labels)
        return [replace(row, merge_seconds=seconds, merge_peak_bytes=peak) for row in (plain, after)]


def parts(merged: MultiTaskModel) -> list[MultiTaskModel]:
    """The models to align: the merged one, or one for each task where every task has an encoder of its own."""
    if not merged.task_encoders:
        return [merged]
    return [
        MultiTaskModel(
            merged.task_encoders[name],
            {name: merged.decoders[name]},
            {name: task},
            base=merged.base,
            merge=merged.merge,
        ).eval()
        for name, task in merged.tasks.items()
    ]


def joined(
    rows: Sequence[ResultRow], baseline: dict[str, dict[str, float]], test: DenseDataset, merged: MultiTaskModel
) -> ResultRow:
    """The row of a model whose tasks were scored apart."""
    if len(rows) == 1:
        return rows[0]
    scores = {task: metrics for row in rows for task, metrics in row.per_task.items()}
    whole = evaluate(merged, test, baseline=baseline, seed=rows[0].seed, scores=scores)
    return replace(
        whole,
        method=rows[0].method,
        trainable_parameters=sum(row.trainable_parameters for row in rows),
        fit_seconds=sum(row.fit_seconds for row in rows),
    )


def looks_at_images(method: MergeMethod) -> bool:
    return isinstance(method, sm.merging.DataMergeMethod)


def train(task: str, config: TrainConfig, base: Base, limit: int | None) -> SingleTaskModel:
    train_split, val = (images_of(name, (task,), limit) for name in ("train", "val"))
    return sm.train_expert(train_split, task, config, base, validation=val)


def images_of(split: str, tasks: Sequence[str], limit: int | None) -> DenseDataset:
    """A split of the rooms, or so many of its images."""
    return open_part("rooms", {}, split, tasks, limit)


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Growth of resident memory, sampled fifty times a second; the value is there after the block."""
    page = 4096
    read = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page  # noqa: E731
    gc.collect()
    before = highest = read()
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.02):
            highest = max(highest, read())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        ended.set()
        thread.join()


def table(rows: Sequence[ResultRow]) -> str:
    """Mean and spread over seeds of delta before and after surgery, best after surgery first."""
    merges = [name for name in dict.fromkeys(row.method for row in rows) if "+" not in name]
    lines = []
    for name in merges:
        plain = [row for row in rows if row.method == name]
        after = [row for row in rows if row.method == f"{name}+{LinearSurgery.name}"]
        cells = [name, spread([r.delta_ratio for r in plain]), spread([r.delta_ratio for r in after])]
        first = plain[0]
        cells += [f"{statistics.median(r.merge_seconds for r in plain):.1f}", f"{first.merge_peak_bytes / 1e6:.0f}"]
        cells += [str(first.images), str(first.labels), f"{first.encoder_passes:.3g}", str(len(plain))]
        lines.append((statistics.fmean(r.delta_ratio for r in after) if after else 0.0, cells))
    head = ["method", "delta %", "+ surgery %", "merge s", "peak MB", "images", "labels", "passes", "seeds"]
    body = [cells for _, cells in sorted(lines, key=lambda line: -line[0])]
    return text_table(head, body)


def spread(values: Sequence[float]) -> str:
    return mean_spread(values, digits=2, minus="-") or "-"


def chosen_methods(names: Sequence[str] | None) -> list[tuple[str, MergeMethod]]:
    """The methods asked for, or all; those for exactly two experts are left out, for there are more."""
    wanted = names or [name for name in MERGE_METHODS if name != "slerp"]
    return [
        (name + suffix, merge_method(name, options))
        for name in wanted
        for suffix, options in VARIANTS.get(name, {"": {}}).items()
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, choices=range(2, len(TASKS) + 1), default=3, help="how many, in order")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=list(MERGE_METHODS))
    parser.add_argument("--threads", type=int, help="threads of torch; default: as many as cores")
    parser.add_argument("--quick", action="store_true", help="two tasks, few methods, images and steps; no result")
    parser.add_argument("--output", type=Path, default=Path("results/merge_quality.json"))
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.seeds, options.methods = 2, [0], options.methods or QUICK_METHODS
        options.output = options.output.with_stem(options.output.stem + "-quick")
        start_anew(options.output)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    run(main)
