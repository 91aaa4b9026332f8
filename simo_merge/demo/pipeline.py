"""The demo's stages, in order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from simo_merge.checkpoints import prepare_output, save, written_directory
from simo_merge.data import DenseDataset, collate, find_rooms, rooms
from simo_merge.demo.photos import photographs
from simo_merge.demo.pictures import photo_panels, save_sheets, test_panels
from simo_merge.demo.stages import Stages
from simo_merge.demo.summary import MERGED, SHOWN, notes, verdict
from simo_merge.demo.timing import forward_seconds
from simo_merge.device import AUTO, resolve_precision
from simo_merge.evaluation import evaluate, expert_scores, experts_row
from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel, fold_aligners
from simo_merge.realign import (
    BatchNormRecalibration,
    CalibrationFeatures,
    Features,
    HeadRealignment,
    LinearSurgery,
    NormRecalibration,
    Realignment,
    Surgery,
    capture,
    realign,
)
from simo_merge.report import Report, write_report
from simo_merge.report.features import feature_views
from simo_merge.results import ResultRow, environment, write_results
from simo_merge.scoring import Scores, score_sharing_encoder
from simo_merge.selection import Selection, select_by_agreement
from simo_merge.training import TrainConfig, train_expert
from simo_merge.weights import Base, load_base

_LOG = logging.getLogger(__name__)
TASKS = ("segmentation", "depth", "normals")
RANK = 64
STEPS = 200  # of gradient surgery; the paper makes up to 500, most of the gain comes early
PHOTO_SIDE = 224  # pixels of a photograph's longer side


@dataclass(frozen=True)
class DemoOptions:
    """What the demo does.

    output: directory for `results.json`, `report.html`, `model/` and `photos/`. data: where the rooms are (the
    repository's own by default). seed: of training and fitting. training: options of the experts; the seed is
    set from here. overwrite: replace an earlier output.
    """

    output: Path = Path("runs/demo")
    data: Path | None = None
    seed: int = 0
    training: TrainConfig = field(default_factory=lambda: TrainConfig(decoder_steps=60, steps=240))
    overwrite: bool = False


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: the rows, the chosen coefficient, and seconds of a forward pass."""

    rows: list[ResultRow]
    selection: Selection
    forward: tuple[float, float]
    output: Path


def realignments() -> list[Realignment]:
    """The re-alignments that the demo compares, cheapest first."""
    return [
        BatchNormRecalibration(),
        NormRecalibration(),
        LinearSurgery(rank=RANK, stretch="none"),
        LinearSurgery(rank=RANK),
        Surgery(rank=RANK, steps=STEPS // 10, start="closed-form"),
        Surgery(rank=RANK, steps=STEPS),
        HeadRealignment(steps=60),
    ]


def run_demo(options: DemoOptions) -> DemoResult:
    """Train (or find) three experts, merge, re-align without labels, evaluate, and write the report.

    Raises:
        SimoError: the rooms, the photographs or the base weights are missing, or the output exists.
    """
    output = prepare_output(options.output, options.overwrite)
    photographs(PHOTO_SIDE)  # where they are not installed, say so now and not after a quarter of an hour
    root = find_rooms(options.data)
    splits = {name: rooms(name, TASKS, root) for name in ("train", "calibration", "val", "test")}
    stages = Stages()
    with stages("base weights", "a few seconds; the first time they are converted"):
        base = load_base()
    experts = _experts(options, root, base, stages)
    return _merge_and_report(options, output, splits, base, experts, stages)


def _precision() -> str:
    """Of features and scores, as in training; matrix work of the fits is in float64 and float32."""
    return resolve_precision(AUTO, torch.device("cpu"))


def _experts(options: DemoOptions, root: Path, base: Base, stages: Stages) -> list[SingleTaskModel]:
    config = replace(options.training, seed=options.seed)
    experts = []
    for task in TASKS:
        with stages(f"expert: {task}", "4 to 8 minutes on two cores; at once when it was trained before"):
            train, validation = (rooms(name, (task,), root) for name in ("train", "val"))
            experts.append(train_expert(train, task, config, base, validation=validation))
    return experts


def _merge_and_report(
    options: DemoOptions,
    output: Path,
    splits: Mapping[str, DenseDataset],
    base: Base,
    experts: list[SingleTaskModel],
    stages: Stages,
) -> DemoResult:
    calibration, test = splits["calibration"], splits["test"]
    with stages("calibration features of the experts", "10 seconds"):
        features = {e.task.name: capture(e.encoder, calibration, precision=_precision()) for e in experts}
    with stages("merge: the coefficient is chosen without labels", "20 seconds"):
        selection = select_by_agreement(
            experts, calibration, base=base, rank=RANK, expert_features=features, precision=_precision()
        )
        merged = selection.recorded_in(merge(experts, TaskArithmetic(selection.scale), base))
        ours = capture(merged.encoder, calibration, precision=_precision(), label="features: merged")
        pair = CalibrationFeatures(ours, features)
    models: dict[str, MultiTaskModel] = {}
    with stages("re-align", "1 minute"):
        for method in realignments():
            models[f"{MERGED}+{method.label}"] = realign(
                merged, experts, calibration, method, pair, seed=options.seed, precision=_precision()
            )
    with stages("evaluate on the test split", "1 minute"):
        rows = _rows(options, splits, base, experts, merged, models)
    with stages("time a forward pass", "10 seconds"):
        batch = collate([test[i] for i in range(min(8, len(test)))]).images
        forward = forward_seconds(experts, fold_aligners(models[SHOWN]), batch)
    result = DemoResult(rows, selection, forward, output)
    with stages("pictures and report", "20 seconds"), written_directory(output, options.overwrite) as folder:
        _write(folder, options, result, splits, experts, merged, models, features, stages)
    _LOG.info("report: %s", output / "report.html")
    return result


def _rows(
    options: DemoOptions,
    splits: Mapping[str, DenseDataset],
    base: Base,
    experts: list[SingleTaskModel],
    merged: MultiTaskModel,
    models: Mapping[str, MultiTaskModel],
) -> list[ResultRow]:
    test = splits["test"]
    baseline: Scores = expert_scores(experts, test, _precision())
    rows = [experts_row(experts, test, baseline, options.seed, labels=len(splits["train"]))]
    unmerged = merge(experts, TaskArithmetic(0.0), base)
    rows.append(
        replace(evaluate(unmerged, test, baseline=baseline, precision=_precision(), seed=options.seed), method="base")
    )
    sharing = {MERGED: merged, **models}
    scores = score_sharing_encoder(sharing, test, precision=_precision(), label="evaluating: merged and re-aligned")
    for name, model in sharing.items():
        rows.append(evaluate(model, test, baseline=baseline, seed=options.seed, scores=scores[name]))
    return rows


def _write(
    folder: Path,
    options: DemoOptions,
    result: DemoResult,
    splits: Mapping[str, DenseDataset],
    experts: list[SingleTaskModel],
    merged: MultiTaskModel,
    models: Mapping[str, MultiTaskModel],
    expert_features: Mapping[str, Features],
    stages: Stages,
) -> None:
    test = splits["test"]
    found = environment()
    found |= {"precision": _precision()}
    found |= {"base weights": merged.base.source if merged.base else "unknown"}
    found |= {"merge": f"{MERGED}, scale {result.selection.scale:g}, chosen by {result.selection.criterion}"}
    together, one = result.forward
    found |= {
        "forward pass": f"{100 * one / together:.0f} % of the experts' time ({one:.3f} s of {together:.3f} s an image)"
    }
    write_results(folder / "results.json", found, result.rows)
    save(models[SHOWN], folder / "model")
    shown: dict[str, MultiTaskModel | Sequence[SingleTaskModel]] = {
        "experts": experts,
        MERGED: merged,
        SHOWN: models[SHOWN],
    }
    photos = photo_panels(photographs(PHOTO_SIDE), merged.tasks, shown)
    save_sheets(photos, folder / "photos")
    seen = feature_views(splits["val"], experts, merged, models, (MERGED, SHOWN), _precision())
    report = Report(
        title="Three experts become one model",
        environment=found,
        rows=result.rows,
        tasks=list(merged.tasks.values()),
        alignment=seen.alignment,
        panels=test_panels(test, shown, range(0, len(test), max(1, len(test) // 6))[:6]),
        photos=photos,
        timings=stages.timings,
        notes=notes(result.selection, splits),
        verdict=verdict(result.rows, result.forward),
        commands=["make demo", f"simo-merge demo --seed {options.seed} -o {options.output}"],
        forward_seconds=result.forward,
        clouds=seen.clouds,
        errors=seen.errors,
    )
    write_report(folder / "report.html", report)
