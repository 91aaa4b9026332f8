"""The demo's pictures: what each model makes of an image, in rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simo_merge.colours import Picture
from simo_merge.data import DenseDataset
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.report import Panel, PanelCell
from simo_merge.report.features import picture
from simo_merge.scoring import predict
from simo_merge.tasks import Task

Models = Mapping[str, MultiTaskModel | Sequence[SingleTaskModel]]


def predictions(model: MultiTaskModel | Sequence[SingleTaskModel], image: Tensor) -> dict[str, Tensor]:
    """Every task's prediction (K, H, W) for one image, from one multi-task model or from its experts."""
    models = [model] if isinstance(model, MultiTaskModel) else model
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for single in models:
            found |= predict(single, image[None], list(single.tasks))
    return {name: value[0].float() for name, value in found.items()}


def test_panels(dataset: DenseDataset, models: Models, indices: Sequence[int]) -> list[Panel]:
    """A panel for each image: tasks down, the truth and every model across, one colour scale a row."""
    panels = []
    for index in indices:
        sample = dataset[index]
        outputs = {column: predictions(model, sample.image) for column, model in models.items()}
        cells = []
        for name, task in dataset.tasks.items():
            target, mask = sample.targets[name], sample.masks[name]
            limits = task.limits(target, mask)
            cells.append(PanelCell(name, "truth", task.draw(target, mask, limits)))
            for column, output in outputs.items():
                cells.append(PanelCell(name, column, task.draw(output[name], None, limits)))
        panels.append(Panel(f"test image {sample.key}", picture(sample.image), cells))
    return panels


def photo_panels(photos: Mapping[str, Tensor], tasks: Mapping[str, Task], models: Models) -> list[Panel]:
    """A panel for each photograph, without truth; a row's colour scale is that of its first model."""
    panels = []
    for title, image in photos.items():
        outputs = {column: predictions(model, image) for column, model in models.items()}
        cells = []
        for name, task in tasks.items():
            limits = task.limits(next(iter(outputs.values()))[name])
            for column, output in outputs.items():
                cells.append(PanelCell(name, column, task.draw(output[name], None, limits)))
        panels.append(Panel(title, picture(image), cells))
    return panels


def save_sheets(panels: Sequence[Panel], folder: Path) -> list[Path]:
    """Write each panel as one PNG: the image, then its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for panel in panels:
        rows: dict[str, list[Picture]] = {}
        for cell in panel.cells:
            rows.setdefault(cell.row_label, [panel.image]).append(cell.picture)
        sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows.values()], axis=0)
        path = folder / f"{panel.title.replace(' ', '-')}.png"
        Image.fromarray(sheet).save(path)
        paths.append(path)
    return paths
