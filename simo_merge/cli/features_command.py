"""The command that draws how near merged and re-aligned features are to the experts'."""

from __future__ import annotations

import copy
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from simo_merge.cli.options import (
    DATA_HELP,
    Device,
    Experts,
    Precision,
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
    data: Annotated[str | None, typer.Option(metavar="SPEC", help=DATA_HELP + " Instead of --images.")] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of --data.")] = "val",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Resize --images to HEIGHTxWIDTH; default: as the experts were trained."),
    ] = None,
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
        notes=_notes(pictures, list(loaded.values()), aligned),
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
        SimoError: models of different encoders, or one that gives every task its own.
    """
    aligned: dict[str, MultiTaskModel] = {}
    first, model = next(iter(loaded.items()))
    for path, each in loaded.items():
        if each.task_encoders or each.block_changes:
            raise SimoError(f"the encoder of {path} differs from task to task; one that all tasks share is drawn here")
        if mark(each.encoder) != mark(model.encoder):
            raise SimoError(
                f"{path} has another encoder than {first}; give re-alignments of one merge, and what changed the "
                "encoder by itself"
            )
        if len(each.aligners):
            name = _name(each)
            aligned[f"{name}, {path.name}" if name in aligned else name] = each
    merged = copy.deepcopy(model)
    merged.aligners.clear()
    return merged, aligned


def _name(model: MultiTaskModel) -> str:
    """What the model is called by its record, without what changed its decoders alone."""
    if model.merge is None:
        return "merged"
    record = model.merge.alignment or {}
    last = record.get("method") if len(model.aligners) else (record.get("before") or record).get("method")
    shown = len(model.aligners) or IN_ENCODER in record or "before" in record
    return f"{model.merge.method}+{last}" if last and shown else model.merge.method


def _explained(rows: Sequence[AlignmentRow]) -> dict[str, float]:
    """The mean over tasks and taps of the explained variance, by model."""
    names = dict.fromkeys(row.method for row in rows)
    return {name: statistics.fmean(r.explained_variance for r in rows if r.method == name) for name in names}


def _notes(pictures: DenseDataset, models: Sequence[MultiTaskModel], aligned: dict[str, MultiTaskModel]) -> list[str]:
    found = [f"{len(pictures)} images of {pictures.name} ({pictures.split}) were looked at."]
    if not aligned:
        found.append("No model has aligners: what was folded into decoders, or changes them alone, is not shown.")
    elif len(aligned) > 1:
        found.append(f"Distributions and maps are those of {next(reversed(aligned))}.")
    fitted = {f"{m.merge.alignment['images']}" for m in models if m.merge is not None and m.merge.alignment}
    if fitted:
        found.append(
            f"Re-alignments were fitted to {' and '.join(sorted(fitted))} images; where those are looked at here, they "
            "are flattered."
        )
    return found
