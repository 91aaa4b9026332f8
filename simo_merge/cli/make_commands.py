"""The commands that make a model. Each calls the same public functions that a Python user would."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simo_merge.checkpoints import load_expert, save
from simo_merge.cli.merge_options import ListMethods, ResamplePosEmbed, Settings
from simo_merge.cli.options import (
    DATA_HELP,
    Device,
    Output,
    Overwrite,
    Precision,
    Seed,
    check_output,
    described_task,
)
from simo_merge.cli.scale import AUTO, MethodChoice
from simo_merge.cli.tables import table
from simo_merge.cli.training_options import (
    Accumulate,
    Augment,
    BaseWeights,
    BatchSize,
    Checkpointing,
    Compile,
    DecoderKind,
    DecoderRate,
    EncoderName,
    EncoderRate,
    TrainSplit,
    ValSplit,
    Workers,
)
from simo_merge.data import open_dataset
from simo_merge.demo import DemoOptions, run_demo
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.distributed import by_main
from simo_merge.errors import SimoError
from simo_merge.merging import DataMergeMethod
from simo_merge.merging import merge as merge_experts
from simo_merge.merging.checks import shared_image_size
from simo_merge.merging.files.merge_checkpoints import load_base_from, merge_checkpoints
from simo_merge.models import DECODERS
from simo_merge.training import TrainConfig, train_expert
from simo_merge.weights import DEFAULT_NAME, fitting_size, load_base


def demo(
    output: Output = Path("runs/demo"),
    rooms: Annotated[
        Path | None,
        typer.Option("--rooms", metavar="DIR", help="The rooms data set, where the repository is not at hand."),
    ] = None,
    decoder: Annotated[
        str, typer.Option(metavar="NAME", help=f"Decoder of the experts: {', '.join(DECODERS)}.")
    ] = "dpt",
    decoder_steps: Annotated[int, typer.Option(metavar="N", min=0, help="Training steps of the decoder alone.")] = 60,
    steps: Annotated[int, typer.Option(metavar="N", min=0, help="Training steps of encoder and decoder.")] = 240,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Three experts become one model: train, merge, re-align without labels, evaluate, and draw a report.

    About 15 minutes on two cores that compute bfloat16, 30 on others; 2 to 5 when the experts are cached. Leaves
    results.json, report.html, the aligned model in model/ and predictions for real photographs in photos/.
    """
    training = TrainConfig(decoder=decoder, decoder_steps=decoder_steps, steps=steps)
    result = run_demo(DemoOptions(output, rooms, seed, training, overwrite))
    typer.echo(table(result.rows))
    typer.echo(f"open {result.output / 'report.html'}")


def train(
    task: Annotated[str, typer.Option(metavar="NAME", help="Task to train for; one that the data set has labels for.")],
    data: Annotated[str, typer.Option(metavar="SPEC", help=DATA_HELP)],
    output: Output,
    split: TrainSplit = "train",
    val_split: ValSplit = None,
    encoder: EncoderName = DEFAULT_NAME,
    weights: BaseWeights = None,
    decoder: DecoderKind = "dpt",
    decoder_steps: Annotated[
        int, typer.Option(metavar="N", min=0, help="Steps of the decoder alone, on the frozen encoder.")
    ] = 100,
    steps: Annotated[int, typer.Option(metavar="N", min=0, help="Steps of encoder and decoder together.")] = 300,
    batch_size: BatchSize = 8,
    encoder_lr: EncoderRate = 5e-5,
    decoder_lr: DecoderRate = 1e-3,
    augment: Augment = "default",
    precision: Precision = "auto",
    accumulate: Accumulate = 1,
    checkpointing: Checkpointing = False,
    compiled: Compile = False,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune an expert: one task, from base weights, first the decoder and then all of it.

    A killed run goes on where it was when the same command is given again; a recipe that was trained before is
    taken from the cache (SIMO_MERGE_CACHE, default ~/.cache/simo_merge).

    Example: simo-merge train --task depth --data rooms -o runs/depth
    """
    check_output(output, overwrite, data)
    where = resolve_device(device)
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
        accumulate=accumulate,
        checkpointing=checkpointing,
        compile=compiled,
    )
    dataset = open_dataset(data, split, [task])
    validation = open_dataset(data, val_split, [task]) if val_split else None
    base = load_base(encoder, weights, fitting_size(encoder, *dataset[0].size))
    expert = train_expert(dataset, task, config, base, None, validation, where, workers)
    by_main(lambda: save(expert, output, overwrite))
    typer.echo(f"expert for {task}: {output} (trained in {expert.provenance.get('train_seconds', 0.0):.0f} s)")


def import_model(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Directory written by save_pretrained of the library.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="What the model predicts; a task of the data set.")],
    data: Annotated[
        str, typer.Option(metavar="SPEC", help=DATA_HELP + " It says what the task's classes and units are.")
    ],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Take an expert that was trained with segmentation_models_pytorch: a DPT over a timm ViT.

    Such a model does not record its base weights, so `merge` then needs --base.

    Example: simo-merge import my-dpt --task depth --data folder:my-data -o runs/depth
    """
    check_output(output, overwrite, model, data)
    expert = load_expert(model, described_task(data, task))
    if "imported" not in expert.provenance:
        raise SimoError(f"{model} is a checkpoint of simo_merge already; use it as it is")
    save(expert, output, overwrite)
    typer.echo(f"expert for {task}: {output}")


def merge(
    experts: Annotated[
        list[Path], typer.Argument(metavar="EXPERT", help="Checkpoints of two or more experts of one base.")
    ],
    output: Output,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Merge method; --list-methods says which there are.")
    ] = "task-arithmetic",
    settings: Settings = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|auto",
            help="Coefficient of methods that have one; auto chooses that of task arithmetic with one of:",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Unlabelled images: (auto) choose by agreement of features; or learn from them."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Data set: (auto) choose by delta on --split; or learn from its images."),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split of --data to choose or to learn by; never the test split.")
    ] = "val",
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="(auto, --images) judge each coefficient after closed-form surgery of this rank, not stretched.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Base weights (as in train), where the experts do not record them or were given a file.",
        ),
    ] = None,
    resample_pos_embed: ResamplePosEmbed = False,
    precision: Precision = "float32",
    seed: Seed = 0,
    device: Device = None,
    list_methods: ListMethods = False,
    overwrite: Overwrite = False,
) -> None:
    """Merge experts into one encoder; each task keeps its decoder.

    Example: simo-merge merge runs/seg runs/depth runs/normals -o runs/merged
    """
    check_output(output, overwrite, *experts, images, data)
    where = resolve_device(device)
    precision = resolve_precision(precision, where)
    choice = MethodChoice(method, scale, settings or (), images, data, split, rank, seed)
    chosen = choice.made()
    if scale != AUTO and not isinstance(chosen, DataMergeMethod):
        given = None if base is None else load_base_from(base)
        merge_checkpoints(experts, chosen, output, given, overwrite, resample_pos_embed)
        typer.echo(f"merged model: {output}")
        return
    models = [load_expert(path) for path in experts]
    origin = None if base is None else load_base(models[0].encoder.name, base, shared_image_size(models))
    if scale == AUTO:
        found = choice.choose(models, origin, where, precision, resample_pos_embed)
        typer.echo(f"scale {found.scale:g}, chosen by {found.criterion}")
        best = choice.chosen(found.scale)
        merged = found.recorded_in(merge_experts(models, best, origin, resample_pos_embed=resample_pos_embed))
    else:
        pictures = choice.calibration(models)
        merged = merge_experts(models, chosen, origin, pictures, where, precision, seed, resample_pos_embed)
    save(merged, output, overwrite)
    typer.echo(f"merged model: {output}")
