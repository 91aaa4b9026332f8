"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simo_merge.checkpoints import load, load_expert, model_fingerprint, prepare_output
from simo_merge.data import FORMATS, DenseDataset, ImageFolder, open_dataset, parse_size, parse_spec
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.tasks import Task

DATA_HELP = f"Data set, one of {', '.join(FORMATS)}; all but rooms with a place: folder:DIR. See docs/data.md."
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", help="Directory to write; one that holds something is refused."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same result.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="NAME", help="float32, bfloat16 (autocast) or auto, the faster one on the device."
    ),
]
Experts = Annotated[
    list[Path] | None,
    typer.Option(
        "--experts",
        metavar="DIR",
        help="Checkpoint of an expert, once for each, if they are neither where they were nor beside the model.",
    ),
]
InsteadOfImages = Annotated[
    str | None, typer.Option("--data", metavar="SPEC", help=DATA_HELP + " Instead of --images.")
]
Resized = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="HxW", help="Resize --images to HEIGHTxWIDTH; default: as the experts were trained."
    ),
]


def check_output(output: Path, overwrite: bool, *inputs: Path | str | None) -> None:
    """Check, before any work starts, that the result can be written and takes no input with it.

    Args:
        output: the directory to write.
        overwrite: whether it may be replaced.
        inputs: what the command reads: paths, or specifications of data sets.

    Raises:
        SimoError: as `prepare_output`, or an input that lies in the output directory.
    """
    for given in inputs if overwrite else ():
        path = parse_spec(given).path if isinstance(given, str) else given
        if path is not None and path.exists() and path.resolve().is_relative_to(output.resolve()):
            raise SimoError(f"writing {output} would delete {path}, which this command reads; choose another output")
    prepare_output(output, overwrite)


def check_writable(file: Path) -> None:
    """Refuse, before any work starts, a file that could not be written.

    Raises:
        SimoError: it is a folder, lies in what is no folder, or where this user may not write.
    """
    if file.is_dir():
        raise SimoError(f"{file} is a folder; give the name of a file to write")
    parent = next(folder for folder in file.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SimoError(f"{file} cannot be written: {parent} is no folder that you may write to")


def load_multi(path: Path) -> MultiTaskModel:
    """A multi-task checkpoint.

    Raises:
        SimoError: as `load`, or a single-task checkpoint.
    """
    model = load(path)
    if not isinstance(model, MultiTaskModel):
        raise SimoError(f"{path} is a single-task model; a merged model is needed here (simo-merge merge)")
    return model


def load_experts(model: MultiTaskModel, where: Path, given: Sequence[Path] | None) -> list[SingleTaskModel]:
    """The experts of a merged model, one a task: those given, else those that its checkpoint records.

    Raises:
        SimoError: an expert that cannot be found, is not the one that was merged, or was given twice or not at all.
    """
    recorded: Mapping[str, Mapping[str, Any]] = model.merge.experts if model.merge else {}
    experts = [load_expert(p) for p in given or [_recorded_path(where, task, recorded) for task in model.tasks]]
    names = [expert.task.name for expert in experts]
    if sorted(names) != sorted(model.tasks):
        raise SimoError(
            f"{where} has the tasks {', '.join(model.tasks)}, but the experts given are for {', '.join(names)}; "
            "give --experts once for each task"
        )
    for expert in experts:
        record = recorded.get(expert.task.name)
        if record is not None and record["sha256"] != model_fingerprint(expert):
            raise SimoError(
                f"the expert in {expert.provenance['path']} is not the {expert.task.name} expert that {where} was "
                "merged from; give the right one with --experts, or merge again"
            )
    return experts


def _recorded_path(where: Path, task: str, recorded: Mapping[str, Mapping[str, Any]]) -> Path:
    """Where the expert was when it was merged, or else beside the merged model: folders get moved as a whole."""
    path = recorded.get(task, {}).get("path")
    if path is None:
        raise SimoError(f"{where} does not record where its {task} expert is; give all experts with --experts")
    places = [Path(path), where.absolute().parent / Path(path).name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise SimoError(
            f"{where} was merged from {path} ({task}), which is not there any more, nor beside {where}; give all "
            "experts with --experts"
        )
    return found


def training_size(model: MultiTaskModel | SingleTaskModel, experts: list[SingleTaskModel]) -> tuple[int, int] | None:
    """The image size (H, W) that the experts were trained at, where they record it."""
    for expert in experts:
        size = expert.provenance.get("image_size")
        if size is not None:
            return int(size[0]), int(size[1])
    return model.encoder.image_size


def training_labels(experts: Sequence[SingleTaskModel]) -> int:
    """How many labelled images an expert was trained on, where the experts record it; else 0."""
    recipes = [expert.provenance.get("recipe", {}) for expert in experts]
    return max((int(recipe.get("data", {}).get("images", 0)) for recipe in recipes), default=0)


def calibration_images(
    images: Path | None, data: str | None, split: str, size: str | None, trained: tuple[int, int] | None
) -> DenseDataset:
    """Calibration images from a folder of pictures or from a split of a data set.

    Pictures are resized to `size` (`HEIGHTxWIDTH`), or else to the size that the experts were trained at.

    Raises:
        SimoError: both or neither were given, a size for a data set, or pictures that cannot be read.
    """
    if (images is None) == (data is None):
        raise SimoError("give either --images DIR (a folder of pictures) or --data SPEC (with --split)")
    if images is None:
        assert data is not None
        parsed = parse_spec(data)
        if parsed.prefix != "images" or parsed.path is None:
            if size is not None:
                raise SimoError(f"--size is for --images; for a data set write it as an option: {data}?size={size}")
            return open_dataset(data, split)
        images = parsed.path
    return ImageFolder(images, trained if size is None else parse_size(size))


def described_task(data: str, name: str) -> Task:
    """A task as a data set describes it.

    Raises:
        SimoError: as `open_dataset`.
    """
    split = "train" if parse_spec(data).prefix == "rooms" else None
    return open_dataset(data, split, [name]).tasks[name]
