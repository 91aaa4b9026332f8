"""The command that draws how near merged and re-aligned features are to the experts'."""

from __future__ import annotations

import copy
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simo_merge.cli.options import (
    Device,
    Experts,
    InsteadOfImages,
    Precision,
    Resized,
    calibration_images,
    check_writable,
    load_experts,
    load_multi,
    training_size,
)
from simo_merge.cli.tables import columns
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.realign.features import mark
from simo_merge.realign.record import IN_ENCODER
from simo_merge.report import AlignmentRow, Report, write_report
from simo_merge.report.features import feature_views
from simo_merge.results import environment


def features(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="A merged model, re-alignments of it, or both."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write, as features.html.")
    ],
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of pictures, best new ones.")] = None,
    data: InsteadOfImages = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of --data.")] = "val",
    size: Resized = None,
    experts: Experts = None,
    precision: Precision = "auto",
    device: Device = None,
) -> None:
    """Draw the features of a merged model beside those of its experts, before and after re-alignment.

    One page: distances at every tap, distributions in a plane, and maps of where in the picture the error sits.
    Take pictures that nothing was fitted to, or they flatter the re-alignment.

    Example: simo-merge features runs/merged runs/aligned --images photos/ -o features.html
    """
    check_writable(output)
    where = resolve_device(device)
    loaded = {path: load_multi(path) for path in models}
    merged, aligned = _told_apart(loaded)
    teachers = load_experts(merged, models[0], experts)
    pictures = calibration_images(images, data, split, size, training_size(merged, teachers))
    precision = resolve_precision(precision, where)
    for each in (merged, *aligned.values(), *teachers):
        each.to(where)
    before, shown = _name(merged), next(reversed(aligned), None)
    found = feature_views(pictures, teachers, merged, aligned, (before, shown), precision)
    told = _explained(found.alignment)
    report = Report(
        title="Features of a merged model",
        environment=environment(where) | {"precision": precision},
        rows=[],
        tasks=list(merged.tasks.values()),
        alignment=found.alignment,
        panels=[],
        photos=[],
        timings=[],
        notes=_notes(pictures, loaded, aligned),
        verdict="How much of the experts' features is explained, mean over tasks and taps (1 is a perfect match): "
        + "; ".join(f"{name} {share:.2f}" for name, share in told.items())
        + ".",
        commands=[shlex.join(["simo-merge", *sys.argv[1:]])],
        clouds=found.clouds,
        errors=found.errors,
    )
    write_report(output, report)
    typer.echo(columns([["model", "explained variance"], *([name, f"{share:.3f}"] for name, share in told.items())]))
    typer.echo(f"open {output}")


def _told_apart(loaded: Mapping[Path, MultiTaskModel]) -> tuple[MultiTaskModel, dict[str, MultiTaskModel]]:
    """The model without aligners, and those with, by name.

    Raises:
        SimoError: models of different encoders, one that gives every task its own, or one with folded aligners.
    """
    aligned: dict[str, MultiTaskModel] = {}
    seen: Counter[str] = Counter()
    first, model = next(iter(loaded.items()))
    for path, each in loaded.items():
        if each.task_encoders or each.block_changes:
            raise SimoError(f"the encoder of {path} differs from task to task; one that all tasks share is drawn here")
        if mark(each.encoder) != mark(model.encoder):
            raise SimoError(
                f"{path} has another encoder than {first}; give re-alignments of one merge, and what changed the "
                "encoder by itself"
            )
        if _record(each).get("folded"):
            raise SimoError(
                f"aligners of {path} were folded into its decoders, which then read other features; give the model as "
                "it was before --fold"
            )
        if len(each.aligners):
            name = _name(each)
            seen[name] += 1
            aligned[name if seen[name] == 1 else f"{name} ({seen[name]})"] = each
    merged = copy.deepcopy(model)
    merged.aligners.clear()
    return merged, aligned


def _name(model: MultiTaskModel) -> str:
    """What the model is called by its record, without what changed its decoders alone."""
    merge, record = model.merge.method if model.merge is not None else "merged", _record(model)
    last = record.get("method") if len(model.aligners) else (record.get("before") or record).get("method")
    shown = len(model.aligners) or IN_ENCODER in record or "before" in record
    return f"{merge}+{last or 're-aligned'}" if shown else merge


def _record(model: MultiTaskModel) -> Mapping[str, Any]:
    return (model.merge.alignment if model.merge is not None else None) or {}


def _explained(rows: Sequence[AlignmentRow]) -> dict[str, float]:
    """The mean over tasks and taps of the explained variance, by model."""
    names = dict.fromkeys(row.method for row in rows)  # every model has a row for every task and tap
    return {name: statistics.fmean(r.explained_variance for r in rows if r.method == name) for name in names}


def _notes(
    pictures: DenseDataset, loaded: Mapping[Path, MultiTaskModel], aligned: dict[str, MultiTaskModel]
) -> list[str]:
    found = [f"Looked at: {pictures.name} ({pictures.split}), images: {len(pictures)}."]
    found += [f"{name} is {path}." for name, each in aligned.items() for path, model in loaded.items() if model is each]
    if len(aligned) > 1:
        found.append(f"Distributions and maps are those of {next(reversed(aligned))}.")
    for path, model in loaded.items():
        record = _record(model)
        if record and not len(model.aligners) and not record.get(IN_ENCODER):
            found.append(f"{path} ({record['method']}) has decoders of its own and no aligners, so it is not drawn.")
    if aligned:
        fitted = sorted({int(_record(model).get("images", 0)) for model in aligned.values()})
        found.append(
            f"Images that the re-alignments were fitted to: {', '.join(map(str, fitted))}. Where they, or those that a "
            "merge was made with, are looked at here, the figures flatter."
        )
    return found
