"""The command that measures which tasks go together, and says which should share an encoder."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from simo_merge.affinity import MEASURES, AffinityMatrix, lambda_sweep
from simo_merge.affinity import affinity as measure_affinity
from simo_merge.affinity.grouping import Grouping, check_encoders, group_tasks, task_weights
from simo_merge.affinity.recipes import write_grouping
from simo_merge.checkpoints import load_expert, written_directory
from simo_merge.cli.affinity_text import decision, measures_table
from simo_merge.cli.options import (
    DATA_HELP,
    Device,
    Output,
    Overwrite,
    Precision,
    Seed,
    calibration_images,
    check_output,
    training_size,
)
from simo_merge.cli.tables import columns
from simo_merge.data import DenseDataset, open_dataset, parse_spec
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.errors import SimoError, nearest
from simo_merge.merging import find_base
from simo_merge.merging.checks import check_experts, shared_image_size
from simo_merge.models import SingleTaskModel
from simo_merge.report.affinity import AffinityReport, write_affinity_report
from simo_merge.report.affinity.page import PAGE
from simo_merge.results import environment
from simo_merge.weights import load_base

_LOG = logging.getLogger(__name__)

DECIDING = ("realigned-features", "explained-variance", "task-vector-cosine")
"""Which measure decides unless one is named: the first of these that was measured."""
GROUPING, SWEEP = "grouping", "lambda-sweep"


def affinity(
    experts: Annotated[
        list[Path], typer.Argument(metavar="EXPERT", help="Checkpoints of two or more experts of one base.")
    ],
    output: Output,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of unlabelled pictures, for measures of features.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help=DATA_HELP + " For measures of losses and scores, too.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of --data; labels are never the test split's.")] = (
        "val"
    ),
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Of --data look at the pictures alone.")] = False,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measures", metavar="NAME[,NAME]", help=f"Default: all that is possible of {', '.join(MEASURES)}."
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(metavar="K", help="Encoders there is room for (default 2, of two experts 1).")
    ] = None,
    decide: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Measure that decides; default: the first of {', '.join(DECIDING)}."),
    ] = None,
    prefer: Annotated[
        list[str] | None, typer.Option(metavar="TASK=WEIGHT", help="Weight of a task in the grouping, 1 unless told.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Base weights (as in train), where the experts do not record them."),
    ] = None,
    resample_pos_embed: Annotated[
        bool, typer.Option("--resample-pos-embed", help="Bring position embeddings of another size to the base's grid.")
    ] = False,
    precision: Precision = "auto",
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure which tasks go together, and group them into K encoders; nothing is trained.

    From weights alone, with --images from features, with --data from labels. Writes index.html, affinity.json, tables,
    pictures, and in grouping/ the recipes that build what was chosen.

    Example: simo-merge affinity runs/seg runs/depth runs/normals --images photos/ --groups 2 -o runs/affinity
    """
    check_output(output, overwrite, *experts, images, data)
    where = resolve_device(device)
    models = _loaded(experts, resample_pos_embed)
    tasks = [model.task.name for model in models]
    room = groups if groups is not None else min(2, len(tasks) - 1)
    weights = _weights(prefer)
    check_encoders(tasks, room)
    task_weights(tasks, weights)
    pictures, labelled = _images(images, data, split, no_labels, models)
    wanted = _wanted(measures, pictures, labelled)
    decider = _decider(decide, wanted)
    origin = find_base(models) if base is None else load_base(models[0].encoder.name, base, shared_image_size(models))
    precision = resolve_precision(precision, where)
    sweep = None
    if SWEEP in wanted:  # made first, and kept for its curves
        sweep = lambda_sweep(
            models, origin, labelled, device=where, precision=precision, resample_pos_embed=resample_pos_embed
        )
    found = measure_affinity(
        models,
        origin,
        pictures,
        labelled,
        wanted,
        device=where,
        precision=precision,
        seed=seed,
        resample_pos_embed=resample_pos_embed,
        sweep=sweep,
    )
    chosen = group_tasks(found[decider], room, weights)
    opinions = _opinions(found, decider, room, weights)
    report = AffinityReport(
        found,
        decision=[chosen],
        opinions={name: [grouping] for name, grouping in opinions.items()},
        sweep=sweep,
        environment=environment(where) | {"precision": precision},
        commands=[shlex.join(["simo-merge", *sys.argv[1:]])],
        about={name: MEASURES[name].summary for name in found},
    )
    with written_directory(output, overwrite) as folder:
        write_affinity_report(folder, report)
        places = dict(zip(tasks, experts, strict=True))
        write_grouping(folder / GROUPING, chosen, places, _calibration(images, data, split))
    typer.echo(columns(measures_table(found, opinions | {decider: chosen})))
    typer.echo(decision(chosen))
    typer.echo(f"open {output / PAGE}; build it with {output / GROUPING / 'README.md'}")


def _loaded(paths: Sequence[Path], any_grid: bool) -> list[SingleTaskModel]:
    if len(paths) < 2:
        raise SimoError(f"affinity is between tasks: give two experts or more, got {len(paths)}")
    models = [load_expert(path) for path in paths]
    check_experts(models, any_grid)
    return models


def _weights(given: Sequence[str] | None) -> dict[str, float]:
    """`TASK=WEIGHT` texts.

    Raises:
        SimoError: no `=`, a task given twice, or no number.
    """
    weights: dict[str, float] = {}
    for text in given or ():
        task, _, value = text.partition("=")
        try:
            weight = float(value)
        except ValueError:
            raise SimoError(f"--prefer takes TASK=WEIGHT, as depth=2; got {text!r}") from None
        if task in weights:
            raise SimoError(f"--prefer gives {task} twice")
        weights[task] = weight
    return weights


def _images(
    images: Path | None, data: str | None, split: str, no_labels: bool, models: list[SingleTaskModel]
) -> tuple[DenseDataset | None, DenseDataset | None]:
    """Pictures for measures of features, and what has labels."""
    if no_labels and data is None:
        raise SimoError("--no-labels is for --data; without it no labels are looked at")
    trained = training_size(models[0], models)
    labelled = None
    if data is not None and not no_labels and parse_spec(data).prefix != "images":
        if split == "test":
            raise SimoError(
                "labels of the test split are for the last word only; give another --split, or --no-labels to look at "
                "its pictures alone"
            )
        labelled = open_dataset(data, split, [model.task.name for model in models])
    if images is not None:
        return calibration_images(images, None, split, None, trained), labelled
    if labelled is None and data is not None:
        return calibration_images(None, data, split, None, trained), None
    return labelled, labelled


def _wanted(given: Sequence[str] | None, pictures: DenseDataset | None, labelled: DenseDataset | None) -> list[str]:
    """Names of measures, in the order of the registry.

    Raises:
        SimoError: unknown ones, or ones whose images or labels were not given.
    """
    able = {"weights": True, "images": pictures is not None, "labels": labelled is not None}
    if given is None:
        return [name for name, measure in MEASURES.items() if able[measure.needs]]
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        raise SimoError(
            f"unknown measure(s) {', '.join(unknown) or '(none given)'}; known: {', '.join(MEASURES)}"
            f"{nearest(unknown, MEASURES)}"
        )
    for name in names:
        if not able[MEASURES[name].needs]:
            needed = "labels: give --data SPEC" if MEASURES[name].needs == "labels" else "pictures: give --images DIR"
            raise SimoError(f"{name} needs {needed}, or leave it out of --measures")
    return [name for name in MEASURES if name in names]


def _decider(given: str | None, wanted: Sequence[str]) -> str:
    if given is None:
        return next((name for name in DECIDING if name in wanted), wanted[0])
    if given not in wanted:
        raise SimoError(f"--decide {given} is not among what is measured: {', '.join(wanted)}{nearest(given, wanted)}")
    return given


def _opinions(
    found: Mapping[str, AffinityMatrix], decider: str, room: int, weights: Mapping[str, float]
) -> dict[str, Grouping]:
    """What the other measures would choose; those that lack a pair's value choose nothing, and that is told."""
    opinions = {}
    for name, matrix in found.items():
        if name == decider:
            continue
        try:
            opinions[name] = group_tasks(matrix, room, weights)
        except SimoError as error:
            _LOG.warning("no grouping by %s", error)
    return opinions


def _calibration(images: Path | None, data: str | None, split: str) -> str:
    """Options of `realign` for the images that the affinity was taken on."""
    if images is not None:
        return f"--images {shlex.quote(str(images.absolute()))}"
    return "--images photos/" if data is None else f"--data {shlex.quote(data)} --split {split}"
