"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from simo_merge.checkpoints import load, load_expert, model_fingerprint
from simo_merge.data import DenseDataset, ImageFolder, open_dataset
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel

DATA_HELP = "Data set: `rooms`, `rooms:DIR`, `folder:DIR` (images and labels that DIR/dataset.yaml describes), or DIR."
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must not exist.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed; the same seed gives the same result.")]
Precision = Annotated[str, typer.Option("--precision", help="float32 or bfloat16 (autocast).")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`126x168` (height x width) as numbers.

    Raises:
        SimoError: another form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise SimoError(f"a size is HEIGHTxWIDTH in pixels, like 126x168; got {text!r}")
    return int(match[1]), int(match[2])


def load_multi(path: Path) -> MultiTaskModel:
    """A multi-task checkpoint.

    Raises:
        SimoError: as `load`, or a single-task checkpoint.
    """
    model = load(path)
    if not isinstance(model, MultiTaskModel):
        raise SimoError(f"{path} is a single-task model; a merged model is needed here (simo-merge merge)")
    return model


def load_experts(model: MultiTaskModel, where: Path, given: list[Path] | None) -> list[SingleTaskModel]:
    """The experts of a merged model: those given, else those that its checkpoint records.

    Raises:
        SimoError: an expert that cannot be found, or is not the one that was merged.
    """
    recorded: Mapping[str, Mapping[str, Any]] = model.merge.experts if model.merge else {}
    if given:
        experts = [load_expert(path) for path in given]
    else:
        experts = [load_expert(_recorded_path(where, task, recorded)) for task in model.tasks]
    for expert in experts:
        record = recorded.get(expert.task.name)
        if record is not None and record["sha256"] != model_fingerprint(expert):
            raise SimoError(
                f"the expert in {expert.provenance['path']} is not the {expert.task.name} expert that {where} was "
                "merged from; give the right one with --experts, or merge again"
            )
    return experts


def _recorded_path(where: Path, task: str, recorded: Mapping[str, Mapping[str, Any]]) -> Path:
    path = recorded.get(task, {}).get("path")
    if path is None:
        raise SimoError(f"{where} does not record where its {task} expert is; give all experts with --experts")
    if not Path(path).is_dir():
        raise SimoError(
            f"{where} was merged from {path} ({task}), which is not there any more; give the experts with --experts"
        )
    return Path(path)


def training_size(model: MultiTaskModel | SingleTaskModel, experts: list[SingleTaskModel]) -> tuple[int, int] | None:
    """The image size (H, W) that the experts were trained at, where they record it."""
    for expert in experts:
        size = expert.provenance.get("image_size")
        if size is not None:
            return int(size[0]), int(size[1])
    return model.encoder.image_size


def calibration_images(images: Path | None, data: str | None, split: str, size: tuple[int, int] | None) -> DenseDataset:
    """Calibration images from a folder of pictures or from a split of a data set.

    Raises:
        SimoError: both or neither were given, or the pictures cannot be read.
    """
    if (images is None) == (data is None):
        raise SimoError("give either --images DIR (a folder of pictures) or --data SPEC (with --split)")
    if images is not None:
        return ImageFolder(images, size)
    assert data is not None
    return open_dataset(data, split)
