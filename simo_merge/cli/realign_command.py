"""The command that re-aligns a merged model, and what it says of the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from simo_merge.checkpoints import save
from simo_merge.cli.merge_options import parse_settings
from simo_merge.cli.options import (
    Device,
    Experts,
    InsteadOfImages,
    Output,
    Overwrite,
    Resized,
    Seed,
    calibration_images,
    check_output,
    load_experts,
    load_multi,
    training_size,
)
from simo_merge.cli.realign_methods import ListRealignments
from simo_merge.cli.tables import columns
from simo_merge.data import parse_size
from simo_merge.device import resolve_device
from simo_merge.distributed import by_main
from simo_merge.errors import SimoError
from simo_merge.models import fold_aligners
from simo_merge.realign import ALIGNER_OBJECTIVES, OnDisk, realignment
from simo_merge.realign import realign as realign_model
from simo_merge.realign.on_disk import StoredType

_LOG = logging.getLogger(__name__)


def realign(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A merged model.")],
    output: Output,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of unlabelled pictures.")] = None,
    data: InsteadOfImages = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of --data.")] = "calibration",
    size: Resized = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Re-alignment; --list-methods says which there are.")
    ] = "surgery-closed-form",
    rank: Annotated[
        str | None,
        typer.Option(metavar="N|auto|none", help="(surgery, linear maps) rank of each tap's map; none: full matrices."),
    ] = None,
    ridge: Annotated[
        str | None, typer.Option(metavar="X|auto", help="(closed forms but auto) ridge, relative to unit variance.")
    ] = None,
    reads: Annotated[
        str | None,
        typer.Option(
            metavar="own|all|auto",
            help="(surgery-closed-form, -gradient, auto) read the tap itself, or all taps.",
        ),
    ] = None,
    max_parameters: Annotated[
        str | None,
        typer.Option(
            metavar="N|P%|none",
            help="(auto) parameters of all aligners together, a number or a share of the encoder's.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="(surgery-closed-form, auto) features or decoder: what errors cost; (surgery-gradient) "
            f"{', '.join(ALIGNER_OBJECTIVES)}.",
        ),
    ] = None,
    stretch: Annotated[
        str | None,
        typer.Option(
            metavar="none|channels|directions",
            help="(surgery-closed-form, auto) give back the contrast that least squares takes away.",
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="NAME", help="(surgery) where gradient descent starts: zero or closed-form.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="(surgery, -v2-gradient, heads, encoder-distilled) gradient steps.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="(whatever is fitted by gradients) learning rate.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the method, once for each."),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Multiply aligners into the decoders where that changes no prediction.")
    ] = False,
    capture_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep features in files of this folder instead of memory, to go on with or use again."
        ),
    ] = None,
    capture_dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of these files: float32 (default), bfloat16 or float16.")
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="(closed forms, auto) Keep no features: memory does not grow with the number of pictures."
        ),
    ] = False,
    experts: Experts = None,
    seed: Seed = 0,
    device: Device = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of the passes whose features are captured or streamed: float32, bfloat16 (autocast) or auto, the "
            "faster one on the device. Of a training: --set precision=NAME.",
        ),
    ] = "float32",
    overwrite: Overwrite = False,
    list_methods: ListRealignments = False,
) -> None:
    """Fit a merged model to its experts: give each decoder back the features that it expects.

    Labels are not needed, only pictures like those that the model is for; without --images take a split of a
    data set, whose labels are then ignored (except by `head` and by the objective `supervised`).

    Example: simo-merge realign runs/merged --images photos/ -o runs/aligned
    """
    check_output(output, overwrite, model, images, data, *(experts or ()))
    where = resolve_device(device)
    if size is not None:
        parse_size(size)
    options = _options(
        {
            "rank": rank,
            "ridge": ridge,
            "reads": reads,
            "budget": max_parameters,
            "objective": objective,
            "stretch": stretch,
            "start": start,
            "steps": steps,
            "lr": lr,
        },
        settings,
    )
    chosen, keep = realignment(method, options), _kept(capture_dir, capture_dtype)
    if data is not None and split == "test":
        if chosen.needs_labels:
            raise SimoError(f"{method} learns from labels, and those of the test split are for the last word only")
        _LOG.warning("fitting to the test split's pictures: scores on that split will flatter the model")
    merged = load_multi(model)
    teachers = load_experts(merged, model, experts)
    pictures = calibration_images(images, data, split, size, training_size(merged, teachers))
    aligned = realign_model(
        merged, teachers, pictures, chosen, device=where, seed=seed, keep=keep, stream=stream, precision=precision
    )
    if fold:
        aligned = fold_aligners(aligned)
    by_main(lambda: save(aligned, output, overwrite))
    record = (aligned.merge.alignment if aligned.merge else None) or {}
    for lines in (_choices(record), _blocks(record), _distances(record)):
        if lines:
            typer.echo(columns(lines))
    if told := _held_out(record):
        typer.echo(told)
    if aligned.encoder_passes != 1:
        typer.echo(f"encoder passes for all tasks of an image: {aligned.encoder_passes:.3g}")
    if fold and len(aligned.aligners):
        typer.echo(f"not folded, for their decoders cannot take them in exactly: {', '.join(aligned.aligners)}")
    both = f", with those of {record['before']['method']} before it" if "before" in record else ""
    typer.echo(
        f"re-aligned model: {output} ({record.get('trainable_parameters', 0):,} parameters fitted to "
        f"{len(pictures)} image{'s' if len(pictures) != 1 else ''} in {record.get('fit_seconds', 0.0):.2f} s{both})"
    )


def _held_out(record: Mapping[str, Any]) -> str | None:
    """How a training inside the encoder went, on the images that it did not see."""
    for name, kept, of in (("errors_held_out", "steps_kept", "steps"), ("epochs_held_out", "epochs_kept", "epochs")):
        if errors := record.get(name):
            after = f", after {record[kept]:,} {of}, which are kept, {min(errors):.4g}"
            return f"error on held-out images: {errors[0]:.4g}{after if record[kept] else f'; no {of} were kept'}"
    return None


def _kept(folder: Path | None, dtype: str | None) -> OnDisk | None:
    """Where features are kept, if not in memory.

    Raises:
        SimoError: a type without a folder, or an unknown one.
    """
    if folder is None:
        if dtype is not None:
            raise SimoError("--capture-dtype is the type of files; name their folder with --capture-dir")
        return None
    return OnDisk(folder, cast(StoredType, dtype or "float32"))


def _options(flags: Mapping[str, Any], settings: Sequence[str] | None) -> dict[str, Any]:
    """A method's options: what flags give, each None where it was left out, and what `--set` gives.

    Raises:
        SimoError: a value that a flag does not take, or an option that both give.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    called = {name: "--max-parameters" if name == "budget" else f"--{name}" for name in given}
    options = parse_settings(settings, called)
    read: dict[str, Callable[[str], Any]] = {"rank": _rank, "ridge": _ridge, "budget": _budget}
    return options | {name: read[name](value) if name in read else value for name, value in given.items()}


def _number(text: str) -> int | float | str:
    """A number where the text is one, else the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _rank(text: str) -> int | float | str | None:
    """A number, `auto`, or None for `none`."""
    return None if text == "none" else _number(text)


def _ridge(text: str) -> int | float | str:
    """A number or `auto`.

    Raises:
        SimoError: neither of them.
    """
    ridge = _number(text)
    if isinstance(ridge, str) and ridge != "auto":
        raise SimoError(f"--ridge is a positive number or auto; got {text!r}")
    return ridge


def _budget(text: str) -> float | None:
    """Parameters as a number, or as a share of the encoder's below 1.

    Raises:
        SimoError: neither `none`, nor a number, nor a percentage below 100.
    """
    if text == "none":
        return None
    number = _number(text.removesuffix("%"))
    share = text.endswith("%")
    if not isinstance(number, int | float) or not 0 <= number < (100 if share else float("inf")):
        raise SimoError(f"--max-parameters is a number, a percentage of the encoder's below 100, or none; got {text!r}")
    return number / 100 if share else number


def _choices(record: Mapping[str, Any]) -> list[list[str]]:
    """What was chosen for each task and tap, and why, where the method chose."""
    chosen = record.get("chosen")
    if isinstance(chosen, Mapping):
        return [["task", "chosen for each tap"], *([task, ", ".join(found)] for task, found in chosen.items())]
    if not isinstance(chosen, list):
        return []
    head = ["task", "block", "parameters", "why"]
    return [head, *([r["task"], str(r["block"]), f"{r['parameters']:,}", r["because"]] for r in chosen)]


def _blocks(record: Mapping[str, Any]) -> list[list[str]]:
    """How much of each block's change was kept, and the held-out error of it, where blocks changed.

    The error is that at the taps behind the block where all tasks share it, and behind the block itself where each task
    has its own.
    """
    rows = record.get("blocks") or []
    lines = [
        [
            *([row["task"]] if "task" in row else []),
            str(row["block"]),
            f"{row['kept']:.0%}",
            f"{sum(row['held_out_before']):.5g} -> {sum(row['held_out']):.5g}" if row["held_out"] else "-",
        ]
        for row in rows
    ]
    head = [*(["task"] if rows and "task" in rows[0] else []), "block", "kept", "held-out error before -> after"]
    return [head, *lines] if lines else []


def _distances(record: Mapping[str, Any]) -> list[list[str]]:
    """Distances to the experts at every tap, before and after."""
    names = {"l1": "L1", "cosine": "cosine", "explained_variance": "explained", "cka": "CKA"}
    distances = record.get("distances", {})
    known: Mapping[str, float] = next((tap["before"] for taps in distances.values() for tap in taps), {})
    names = {name: shown for name, shown in names.items() if name in known}  # of a stream some are not known
    lines = [["task", "block", *(f"{shown} before -> after" for shown in names.values())]]
    for task, taps in distances.items():
        for tap in taps:
            pairs = [f"{tap['before'][name]:.4g} -> {tap['after'][name]:.4g}" for name in names]
            lines.append([task, str(tap["block"]), *pairs])
    return lines if len(lines) > 1 else []
