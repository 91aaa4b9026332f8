"""The command that trains one model for several tasks at once: what merging is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simo_merge.checkpoints import load_expert, save
from simo_merge.cli.merge_options import parse_settings
from simo_merge.cli.options import DATA_HELP, Device, Output, Overwrite, Precision, Seed, check_output
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
from simo_merge.device import resolve_device
from simo_merge.distributed import by_main
from simo_merge.training import (
    WEIGHTINGS,
    JointConfig,
    describe_weighting,
    train_joint,
    weighting_named,
)
from simo_merge.weights import DEFAULT_NAME, fitting_size, load_base


def list_weightings(wanted: bool) -> None:
    """Say every weighting with its purpose, its options and what a step costs, and end."""
    if not wanted:
        return
    for name in WEIGHTINGS:
        facts = describe_weighting(name)
        options = ", ".join(f"{option}={value}" for option, value in facts.options.items()) or "no options"
        kind = "weighs gradients, one for each task" if facts.needs_gradients else "weighs losses"
        typer.echo(f"{name}: {facts.purpose}\n    {options}; {kind}")
    raise typer.Exit


def train_joint_command(
    task: Annotated[
        list[str], typer.Option(metavar="NAME", help="Task to train for, once for each; the data set has their labels.")
    ],
    data: Annotated[str, typer.Option(metavar="SPEC", help=DATA_HELP)],
    output: Output,
    weighting: Annotated[
        str, typer.Option(metavar="NAME", help="How tasks are weighed; --list-weightings says which ways there are.")
    ] = "equal",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of the weighting, once for each."),
    ] = None,
    distill: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Checkpoint of an expert to keep the features to, once for each task (Li and Bilen)."
        ),
    ] = None,
    distill_weight: Annotated[
        float, typer.Option(metavar="X", help="(--distill) weight of the distance to the experts' features.")
    ] = 1.0,
    split: TrainSplit = "train",
    val_split: ValSplit = None,
    encoder: EncoderName = DEFAULT_NAME,
    weights: BaseWeights = None,
    decoder: DecoderKind = "dpt",
    decoder_steps: Annotated[
        int, typer.Option(metavar="N", min=0, help="Steps of the decoders alone, on the frozen encoder.")
    ] = 100,
    steps: Annotated[int, typer.Option(metavar="N", min=0, help="Steps of encoder and decoders together.")] = 300,
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
    list_of_weightings: Annotated[
        bool,
        typer.Option(
            "--list-weightings", help="Say every weighting and its options.", is_eager=True, callback=list_weightings
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one encoder for several tasks at once, with labels of all of them: what merging is compared with.

    Stages, schedules and images are those of `train`, and so are the cache and the way a killed run goes on.

    Example: simo-merge train-joint --task depth --task normals --data rooms --weighting uncertainty -o runs/joint
    """
    check_output(output, overwrite, data, *(distill or ()))
    where = resolve_device(device)
    config = JointConfig(
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
        weighting=weighting_named(weighting, parse_settings(settings)),
        distill=distill_weight if distill else 0.0,
    )
    experts = [load_expert(path) for path in distill or ()]
    dataset = open_dataset(data, split, task)
    validation = open_dataset(data, val_split, task) if val_split else None
    base = load_base(encoder, weights, fitting_size(encoder, *dataset[0].size))
    model = train_joint(dataset, task, config, base, None, validation, where, workers, experts)
    by_main(lambda: save(model, output, overwrite))
    cost = model.provenance
    typer.echo(
        f"joint model for {', '.join(task)}: {output} (trained in {cost['train_seconds']:.0f} s, "
        f"{cost['peak_memory'] / 2**20:.0f} MiB at most)"
    )
