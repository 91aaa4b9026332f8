"""Predictions for pictures on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simo_merge.checkpoints import written_directory
from simo_merge.data import IMAGE_SUFFIXES, read_image, resize_longer_side
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.progress import progress
from simo_merge.scoring import predict


def predict_files(
    model: MultiTaskModel | SingleTaskModel,
    paths: Sequence[Path],
    output: Path,
    longer_side: int,
    tasks: Sequence[str] | None = None,
    overwrite: bool = False,
) -> int:
    """Write NAME.TASK.png and NAME.npz (class ids as uint8, every other task as float32) for each picture.

    Returns:
        How many pictures were read.

    Raises:
        SimoError: a picture that is missing or cannot be read, two pictures of one name, an unknown task.
    """
    names = list(tasks or model.tasks)
    unknown = [name for name in names if name not in model.tasks]
    if unknown:
        raise SimoError(f"unknown task(s) {', '.join(unknown)}; this model has {', '.join(model.tasks)}")
    if longer_side < 1:
        raise SimoError(f"the longer side must be 1 pixel or more, got {longer_side}")
    files = _pictures(paths)
    with written_directory(output, overwrite) as folder:
        for file in progress(files, len(files), "predicting"):
            _predict_one(model, names, read_image(file), longer_side, folder / file.stem)
    return len(files)


def _predict_one(
    model: MultiTaskModel | SingleTaskModel, names: Sequence[str], image: Tensor, longer_side: int, stem: Path
) -> None:
    if max(image.shape[-2:]) > longer_side:
        image = resize_longer_side(image, longer_side)
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = predict(model, image[None].to(device), names)
    values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
    for name in names:
        task, prediction = model.tasks[name], found[name][0].float().cpu()
        if not torch.isfinite(prediction).all():
            raise SimoError(f"the {name} predicted for {stem.name} is NaN or infinite; the model has diverged")
        Image.fromarray(task.draw(prediction)).save(f"{stem}.{name}.png")
        if task.kind == "segmentation":
            values[name] = prediction.max(dim=0).indices.to(torch.uint8).numpy()
        else:
            values[name] = prediction.numpy()
    np.savez_compressed(f"{stem}.npz", allow_pickle=False, **values)


def _pictures(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise SimoError(f"no pictures in {path}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise SimoError(f"{path} does not exist; give pictures or folders of pictures")
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise SimoError(f"{stems[file.stem]} and {file} have one name, so one result would hide the other")
        stems[file.stem] = file
    return files
