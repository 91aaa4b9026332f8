"""The commands. Each calls the same public functions that a Python user would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simo_merge.checkpoints import load, load_expert, prepare_output, save
from simo_merge.cli.describe import describe_model
from simo_merge.cli.options import (
    DATA_HELP,
    Device,
    Output,
    Overwrite,
    Precision,
    Seed,
    calibration_images,
    load_experts,
    load_multi,
    parse_size,
    training_size,
)
from simo_merge.cli.predict import predict_files
from simo_merge.cli.tables import table
from simo_merge.data import open_dataset
from simo_merge.demo import DemoOptions, run_demo
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate as evaluate_model
from simo_merge.evaluation import expert_scores, experts_row
from simo_merge.merging import MERGE_METHODS, merge_method
from simo_merge.merging import merge as merge_experts
from simo_merge.models import DECODERS, MultiTaskModel
from simo_merge.realign import REALIGNMENTS, realignment
from simo_merge.realign import realign as realign_model
from simo_merge.results import environment, write_results
from simo_merge.selection import select_by_agreement, select_by_validation
from simo_merge.training import TrainConfig, train_expert
from simo_merge.weights import DEFAULT_NAME, fitting_size, load_base


def demo(
    output: Output = Path("runs/demo"),
    rooms: Annotated[
        Path | None,
        typer.Option("--rooms", help="Folder of the rooms data set, where the repository is not at hand."),
    ] = None,
    decoder: Annotated[str, typer.Option(help=f"Decoder of the experts: {', '.join(DECODERS)}.")] = "dpt",
    decoder_steps: Annotated[int, typer.Option(help="Training steps of the decoder alone.")] = 100,
    steps: Annotated[int, typer.Option(help="Training steps of encoder and decoder.")] = 300,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Three experts become one model: train, merge, re-align without labels, evaluate, and draw a report.

    About 15 minutes on two cores; under 2 when the experts are cached. Leaves results.json, report.html, the
    aligned model in model/ and predictions for real photographs in photos/.
    """
    training = TrainConfig(decoder=decoder, decoder_steps=decoder_steps, steps=steps)
    result = run_demo(DemoOptions(output, rooms, seed, training, overwrite))
    typer.echo(table(result.rows))
    typer.echo(f"open {result.output / 'report.html'}")


def train(
    task: Annotated[str, typer.Option(help="Task to train for; one that the data set has labels for.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Output,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val_split: Annotated[str | None, typer.Option(help="Split to score after each stage.")] = None,
    encoder: Annotated[str, typer.Option(help="timm name of the ViT.")] = DEFAULT_NAME,
    weights: Annotated[
        str | None,
        typer.Option(help="Base weights: a file, or timm, package or random; default: the first that is there."),
    ] = None,
    decoder: Annotated[str, typer.Option(help=f"Decoder: {', '.join(DECODERS)}.")] = "dpt",
    decoder_steps: Annotated[int, typer.Option(help="Steps of the decoder alone, on the frozen encoder.")] = 100,
    steps: Annotated[int, typer.Option(help="Steps of encoder and decoder together.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 8,
    encoder_lr: Annotated[float, typer.Option(help="Peak learning rate of the encoder.")] = 5e-5,
    decoder_lr: Annotated[float, typer.Option(help="Peak learning rate of the decoder.")] = 1e-3,
    augment: Annotated[bool, typer.Option(help="Random zoom, flip and colour.")] = True,
    precision: Precision = "bfloat16",
    workers: Annotated[int, typer.Option(help="Loader processes; 0 loads in this one.")] = 0,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Train an expert: one task, from base weights, first the decoder and then all of it.

    A killed run goes on where it was when the same command is given again; a recipe that was trained before is
    taken from the cache (SIMO_MERGE_CACHE, default ~/.cache/simo_merge).
    """
    prepare_output(output, overwrite)
    config = TrainConfig(
        decoder=decoder,
        decoder_steps=decoder_steps,
        steps=steps,
        batch_size=batch_size,
        decoder_lr=decoder_lr,
        encoder_lr=encoder_lr,
        augment=augment,
        precision=precision,
        seed=seed,
    )
    dataset = open_dataset(data, split, [task])
    validation = open_dataset(data, val_split, [task]) if val_split else None
    base = load_base(encoder, weights, fitting_size(encoder, *dataset[0].size))
    expert = train_expert(dataset, task, config, base, None, validation, device, workers)
    save(expert, output, overwrite)
    typer.echo(f"expert for {task}: {output}")


def import_model(
    model: Annotated[Path, typer.Argument(help="Directory written by segmentation_models_pytorch's save_pretrained.")],
    task: Annotated[str, typer.Option(help="What the model predicts; a task of the data set.")],
    data: Annotated[str, typer.Option(help=DATA_HELP + " It says what the task's classes and units are.")],
    output: Output,
    split: Annotated[str | None, typer.Option(help="Any split of the data set.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import an expert that was trained with segmentation_models_pytorch (a DPT over a timm ViT)."""
    dataset = open_dataset(data, split, [task])
    save(load_expert(model, dataset.tasks[task]), output, overwrite)
    typer.echo(f"expert for {task}: {output}")


def merge(
    experts: Annotated[list[Path], typer.Argument(help="Checkpoints of two or more experts of one base.")],
    output: Output,
    method: Annotated[str, typer.Option(help=f"Merge method: {', '.join(MERGE_METHODS)}.")] = "task-arithmetic",
    scale: Annotated[
        str,
        typer.Option(help="Coefficient of task arithmetic: a number, or auto with --images or --data to choose by."),
    ] = "0.3",
    images: Annotated[
        Path | None,
        typer.Option(help="With --scale auto: unlabelled images; choose by agreement of features."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --scale auto: labelled data set; choose by delta on --split.")
    ] = None,
    split: Annotated[str, typer.Option(help="Validation split for --data; never the test split.")] = "val",
    rank: Annotated[
        int | None,
        typer.Option(help="With --images: judge each coefficient after closed-form surgery of this rank."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base weights, where the experts do not record them or were given a file."),
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge experts into one encoder; each task keeps its decoder."""
    prepare_output(output, overwrite)
    models = [load_expert(path) for path in experts]
    origin = None
    if base is not None:
        encoder = models[0].encoder
        origin = load_base(encoder.name, base, encoder.grid_size)
    parameters = {}
    if method == "task-arithmetic":
        if scale == "auto":
            if (images is None) == (data is None):
                raise SimoError("--scale auto takes --images DIR (without labels) or --data SPEC (validation split)")
            if images is not None:
                size = training_size(models[0], models)
                pictures = calibration_images(images, None, split, size)
                chosen = select_by_agreement(models, pictures, base=origin, device=device, rank=rank)
            else:
                assert data is not None
                labelled = open_dataset(data, split, [m.task.name for m in models])
                chosen = select_by_validation(models, labelled, base=origin, device=device)
            parameters["scale"] = chosen.scale
            typer.echo(f"scale {chosen.scale:g}, chosen by {chosen.criterion}")
        else:
            parameters["scale"] = _number(scale)
    merged = merge_experts(models, merge_method(method, parameters), origin)
    save(merged, output, overwrite)
    typer.echo(f"merged model: {output}")


def realign(
    model: Annotated[Path, typer.Argument(help="A merged model.")],
    output: Output,
    images: Annotated[Path | None, typer.Option(help="Folder of unlabelled pictures.")] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP + " Instead of --images.")] = None,
    split: Annotated[str, typer.Option(help="Split of --data.")] = "calibration",
    size: Annotated[
        str | None,
        typer.Option(help="Resize pictures to HEIGHTxWIDTH; default: as the experts were trained."),
    ] = None,
    method: Annotated[str, typer.Option(help=f"Re-alignment: {', '.join(REALIGNMENTS)}.")] = "surgery-closed-form",
    rank: Annotated[int | None, typer.Option(help="Rank of surgery.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps, where the method has any.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, where the method has one.")] = None,
    ridge: Annotated[float | None, typer.Option(help="Ridge of the closed form, relative to unit variance.")] = None,
    start: Annotated[str | None, typer.Option(help="Gradient surgery starts at zero or at closed-form.")] = None,
    experts: Annotated[
        list[Path] | None, typer.Option(help="The experts, if they are not where they were; once for each.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Re-align a merged model: give each decoder back the features that it expects. `head` needs labels."""
    prepare_output(output, overwrite)
    options = {"rank": rank, "steps": steps, "lr": lr, "ridge": ridge, "start": start}
    chosen = realignment(method, {name: value for name, value in options.items() if value is not None})
    merged = load_multi(model)
    teachers = load_experts(merged, model, experts)
    pictures = calibration_images(images, data, split, parse_size(size) or training_size(merged, teachers))
    aligned = realign_model(merged, teachers, pictures, chosen, device=device, seed=seed)
    save(aligned, output, overwrite)
    record = (aligned.merge.alignment if aligned.merge else None) or {}
    typer.echo(
        f"re-aligned model: {output} ({record.get('trainable_parameters', 0):,} parameters fitted to "
        f"{len(pictures)} images in {record.get('fit_seconds', 0.0):.2f} s)"
    )


def evaluate(
    model: Annotated[Path, typer.Argument(help="A merged or re-aligned model, or an expert.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    experts: Annotated[
        list[Path] | None, typer.Option(help="The experts, if they are not where they were; once for each.")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Evaluate the experts too, for delta.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result file here.")] = None,
    precision: Precision = "float32",
    device: Device = None,
) -> None:
    """Evaluate a model on a labelled split, against the experts that it was merged from."""
    loaded = load(model)
    dataset = open_dataset(data, split)
    where = resolve_device(device)
    rows = []
    scores = None
    if isinstance(loaded, MultiTaskModel) and baseline:
        teachers = load_experts(loaded, model, experts)
        teachers = [t.to(where) for t in teachers if t.task.name in dataset.tasks]
        scores = expert_scores(teachers, dataset, precision)
        rows.append(experts_row(teachers, dataset, scores, seed=0, labels=0))
    rows.append(evaluate_model(loaded.to(where), dataset, baseline=scores, precision=precision))
    if json_file is not None:
        write_results(json_file, environment(where), rows)
    typer.echo(table(rows))


def predict(
    model: Annotated[Path, typer.Argument(help="A merged or re-aligned model, or an expert.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    output: Output,
    longer_side: Annotated[
        int, typer.Option(help="Scale pictures down so that the longer side has at most this many pixels.")
    ] = 448,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be given again.")] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict every task for pictures: a PNG to look at for each task, and the values in an .npz."""
    loaded = load(model).to(resolve_device(device))
    written = predict_files(loaded, images, output, longer_side, tasks, overwrite)
    typer.echo(f"{written} pictures: {output}")


def inspect(
    model: Annotated[Path, typer.Argument(help="A checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what a checkpoint holds: tasks, encoder, base, merge, re-alignment, parameters."""
    found = describe_model(load(model))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        typer.echo(f"{name:<{width}}  {value}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SimoError(f"--scale is a number or auto, got {text!r}") from error
