"""The commands that merge files of weights, and write one. They need no model, so they start at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simo_merge.cli.merge_options import ListMethods, ResamplePosEmbed, Settings, parse_settings
from simo_merge.data import parse_size
from simo_merge.errors import SimoError
from simo_merge.merging.describe import method_named
from simo_merge.merging.files import OUTPUT_DTYPES, SafetensorsWriter, open_state
from simo_merge.merging.files import merge_files as merge_state_files
from simo_merge.merging.recipes.recipe import FileMerge, read_recipe
from simo_merge.merging.stored import stored_in

FileOverwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def merge_files(
    given: Annotated[
        list[Path], typer.Argument(metavar="RECIPE.yaml | EXPERT...", help="A recipe, or two or more experts.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="A file x.safetensors, or a directory.")
    ],
    base: Annotated[Path | None, typer.Option(metavar="PATH", help="The weights that the experts began from.")] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Merge method (default task-arithmetic).")] = None,
    settings: Settings = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Of the output: {', '.join(OUTPUT_DTYPES)}; default: the base's."),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split the output, a directory, into files of at most this: 2GB.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out tensors of such names: 'head.*'.")
    ] = None,
    resample_pos_embed: ResamplePosEmbed = False,
    pos_embed_grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW",
            help="Rows and columns of patches where they are no square, once for each such grid: 9x12.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")] = "cpu",
    list_methods: ListMethods = False,
    overwrite: FileOverwrite = False,
) -> None:
    """Merge files of weights: safetensors (also in shards), state dicts, checkpoints, directories of smp.

    Reads and writes tensor by tensor, so memory is that of a few tensors.

    Example: simo-merge merge-files --base dino.safetensors seg.safetensors depth.pth -o merged.safetensors
    """
    plan = _plan(given, base, method, settings, output)
    written = merge_state_files(
        plan.base,
        plan.experts,
        plan.method,
        output,
        dtype=dtype or plan.dtype,
        shard_size=shard_size,
        skip=skip or (),
        resample_pos_embed=resample_pos_embed,
        pos_embed_grids=[parse_size(text) for text in pos_embed_grid or ()],
        device=device,
        overwrite=overwrite,
    )
    typer.echo(f"merged weights: {written}")


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint: merged, re-aligned, or an expert.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write, x.safetensors.")],
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose encoder, where every task has its own (EMR, TALL-masks).")
    ] = None,
    overwrite: FileOverwrite = False,
) -> None:
    """Write a checkpoint's encoder as a plain state dict, which loads into the timm model of its name.

    Example: simo-merge export runs/merged -o encoder.safetensors
    """
    if not model.is_dir():
        raise SimoError(f"{model} is no directory; give a checkpoint")
    if output.suffix != ".safetensors":
        raise SimoError(f"the output must be named x.safetensors, got {output}")
    if output.exists() and not overwrite:
        raise SimoError(f"{output} exists; choose another name or pass --overwrite")
    state = open_state(model, task)
    output.parent.mkdir(parents=True, exist_ok=True)
    with SafetensorsWriter(output, {name: stored_in(state, name) for name in state}) as writer:
        for name in state:
            writer.write(name, state[name])
    typer.echo(f"encoder: {output} ({len(state)} tensors, in timm's names)")


def _plan(
    given: list[Path], base: Path | None, method: str | None, settings: list[str] | None, output: Path
) -> FileMerge:
    if any(path.suffix in (".yaml", ".yml") for path in given):
        if len(given) > 1 or base is not None or method is not None or settings:
            raise SimoError("a recipe says all of it: give it alone, or --base, --method and experts without a recipe")
        if given[0].resolve().is_relative_to(output.resolve()):
            raise SimoError(f"writing {output} would delete the recipe {given[0]}; choose another output")
        return read_recipe(given[0])
    if base is None:
        raise SimoError("give the weights that the experts began from with --base, or a recipe")
    return FileMerge(base, tuple(given), method_named(method or "task-arithmetic", parse_settings(settings)))
