"""The commands that use a model. Each calls the same public functions that a Python user would."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from simo_merge.checkpoints import load
from simo_merge.cli.describe import as_lines, describe_model
from simo_merge.cli.options import (
    DATA_HELP,
    Device,
    Experts,
    Output,
    Overwrite,
    Precision,
    check_output,
    check_writable,
    load_experts,
    training_labels,
)
from simo_merge.cli.predict import predict_files
from simo_merge.cli.tables import table
from simo_merge.data import DenseDataset, SourceDataset, open_dataset
from simo_merge.device import resolve_device
from simo_merge.distributed import by_main
from simo_merge.evaluation import evaluate as evaluate_model
from simo_merge.evaluation import expert_scores, experts_row
from simo_merge.metrics import PROTOCOLS, find_protocol
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.results import environment, write_results
from simo_merge.scoring import BATCH_SIZE, scorable_tasks


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A merged or re-aligned model, or an expert.")],
    data: Annotated[str, typer.Option(metavar="SPEC", help=DATA_HELP)],
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to evaluate on.")] = "test",
    experts: Experts = None,
    baseline: Annotated[bool, typer.Option(help="Evaluate the experts too, for delta.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result file here.")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How metrics are computed, one of {', '.join(PROTOCOLS)}. See docs/protocols.md.",
        ),
    ] = "pooled",
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images at a time; under mtan and simo it changes the scores.")
    ] = BATCH_SIZE,
    precision: Precision = "float32",
    device: Device = None,
) -> None:
    """Score a model on a labelled split, and the experts that it was merged from.

    delta is the mean over tasks of the ratio to the expert, in percent: 0 is as good as the experts.

    Example: simo-merge evaluate runs/aligned --data rooms --json results.json
    """
    label = find_protocol(protocol).label(batch_size)
    where = resolve_device(device)
    if json_file is not None:
        check_writable(json_file)
    loaded = load(model)
    dataset = _labelled(data, split, list(loaded.tasks))
    scorable_tasks(loaded.tasks, dataset)
    rows = []
    scores = None
    if isinstance(loaded, MultiTaskModel) and baseline:
        teachers = load_experts(loaded, model, experts)
        teachers = [t.to(where) for t in teachers if t.task.name in dataset.tasks]
        scores = expert_scores(teachers, dataset, precision, protocol, batch_size)
        labels = training_labels(teachers)
        rows.append(experts_row(teachers, dataset, scores, 0, labels, protocol, batch_size))
    row = evaluate_model(
        loaded.to(where), dataset, baseline=scores, precision=precision, protocol=protocol, batch_size=batch_size
    )
    if isinstance(loaded, SingleTaskModel):
        row = replace(row, labels=training_labels([loaded]))
    rows.append(row)
    if json_file is not None:
        by_main(lambda: write_results(json_file, environment(where), rows))
    typer.echo(table(rows))
    if protocol != "pooled":
        typer.echo(f"measured under the protocol {label} (docs/protocols.md)")


def _labelled(data: str, split: str, tasks: list[str]) -> DenseDataset:
    """The data set with those of these tasks that it has or can derive; no file of another task is looked for."""
    logging.disable(logging.WARNING)  # what there is to say is said when it is opened for good
    try:
        found = open_dataset(data, split, [])
    finally:
        logging.disable(logging.NOTSET)
    offered = found.offered(tasks) if isinstance(found, SourceDataset) else []
    return open_dataset(data, split, offered or None)


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A merged or re-aligned model, or an expert.")],
    images: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="Pictures, or folders of pictures.")],
    output: Output,
    longer_side: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Scale pictures down so that the longer side has at most this many pixels."
        ),
    ] = 448,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="Only this task; may be given again.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict every task for pictures: for each a PNG to look at, and the values in an .npz.

    Example: simo-merge predict runs/aligned street.jpg -o out
    """
    check_output(output, overwrite, model, *images)
    where = resolve_device(device)
    written = predict_files(load(model).to(where), images, output, longer_side, tasks, overwrite)
    typer.echo(f"predictions for {written} picture{'s' if written > 1 else ''}: {output}")


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what a checkpoint holds: tasks, encoder, base, merge, re-alignment, parameters.

    Example: simo-merge inspect runs/aligned
    """
    found = describe_model(load(model))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    lines = as_lines(found)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")
