"""Options that the commands that train have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from simo_merge.models import DECODERS
from simo_merge.training import AUGMENTATIONS

TrainSplit = Annotated[str, typer.Option("--split", metavar="NAME", help="Split to train on.")]
ValSplit = Annotated[
    str | None,
    typer.Option(
        "--val-split",
        metavar="NAME",
        help="Split to score after each stage; the scores are told, and decide nothing.",
    ),
]
EncoderName = Annotated[str, typer.Option("--encoder", metavar="NAME", help="timm name of the ViT.")]
BaseWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="SOURCE",
        help="Base weights: a file, or timm, package or random; default: the first that is there.",
    ),
]
DecoderKind = Annotated[str, typer.Option("--decoder", metavar="NAME", help=f"Decoder: {', '.join(DECODERS)}.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images a step, over all processes.")]
Accumulate = Annotated[
    int,
    typer.Option("--accumulate", metavar="N", min=1, help="Cut each batch into N micro-batches, to save memory."),
]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Run encoder blocks twice instead of keeping what they computed.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the encoder: slow to start, then faster on a GPU.")]
EncoderRate = Annotated[float, typer.Option("--encoder-lr", metavar="RATE", help="Peak learning rate of the encoder.")]
DecoderRate = Annotated[float, typer.Option("--decoder-lr", metavar="RATE", help="Peak learning rate of the decoder.")]
Augment = Annotated[
    str,
    typer.Option("--augment", metavar="NAME", help=f"Changes of training images: {', '.join(AUGMENTATIONS)}."),
]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Loader processes; 0 loads in a thread of this one.")
]
