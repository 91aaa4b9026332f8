"""Pictures inside the page: data URIs within a budget of bytes, arranged as tasks x models, with legends."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from simo_merge.colours import Picture, magma
from simo_merge.report.contents import Panel
from simo_merge.report.methods import describe
from simo_merge.tasks import Normals, PositiveMap, Segmentation, Task

PICTURE_BYTES = 5_000_000
"""What all pictures of a report may take, as base64 text; the page around them is small."""

_EFFORTS = ((90, 768), (85, 512), (75, 384), (65, 256), (50, 192))
_FLAT_COLOURS = 64


@dataclass(frozen=True)
class PictureView:
    """An embedded picture; `flat` marks label maps, whose pixels stay sharp when enlarged."""

    uri: str
    width: int
    height: int
    alt: str
    flat: bool


@dataclass(frozen=True)
class PanelView:
    """A panel ready for the template: `rows` are (row label, one picture or None for each column)."""

    title: str
    image: PictureView
    columns: tuple[str, ...]
    best_column: int | None
    rows: tuple[tuple[str, tuple[PictureView | None, ...]], ...]


@dataclass(frozen=True)
class Legend:
    """How to read one task's pictures: a picture with a caption, or class names with colours (r, g, b)."""

    task: str
    caption: str
    picture: PictureView | None = None
    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()


def view_panels(
    groups: Sequence[Sequence[Panel]], methods: Sequence[str], best: str | None, budget: int = PICTURE_BYTES
) -> list[list[PanelView]]:
    """Return the panels with embedded pictures, as large and as good as the budget of bytes allows.

    Args:
        groups: lists of panels that share the budget.
        methods: method names; a column label that is one of them is printed in its readable form.
        best: the method whose column is marked.
        budget: bytes of all data URIs; the least effort is taken when none fits.
    """
    views: list[list[PanelView]] = []
    for quality, side in _EFFORTS:
        views = [[_view(panel, methods, best, quality, side) for panel in group] for group in groups]
        if sum(_size(view) for group in views for view in group) <= budget:
            break
    return views


def hero(panels: Sequence[PanelView]) -> list[tuple[str, PictureView]]:
    """Return up to four pictures for the top of the page: an image and what the best model made of it."""
    shown = next((panel for panel in panels if panel.best_column is not None), None)
    if shown is None or shown.best_column is None:
        return []
    column = shown.best_column
    cells = [(row, pictures[column]) for row, pictures in shown.rows]
    return [("one image in", shown.image), *((row, cell) for row, cell in cells[:3] if cell is not None)]


def legends(tasks: Sequence[Task]) -> list[Legend]:
    """Return a legend for each task whose colours have a meaning."""
    found = [_legend(task) for task in tasks]
    return [legend for legend in found if legend is not None]


def error_scale() -> PictureView:
    """Return the colours of the maps of errors, from no error to the end of a row's scale."""
    ramp = np.linspace(0.0, 1.0, 160)[None].repeat(14, axis=0)
    return encode(magma(ramp), "Colours from no error to the end of a row's scale", 95)


def encode(picture: Picture, alt: str, quality: int = 90, side: int = 768) -> PictureView:
    """Return the picture as a WebP data URI, at most `side` pixels long; label maps without loss."""
    image = Image.fromarray(picture)
    flat = image.getcolors(_FLAT_COLOURS) is not None
    if max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=flat, quality=quality, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return PictureView(uri, image.width, image.height, alt, flat)


def _view(panel: Panel, methods: Sequence[str], best: str | None, quality: int, side: int) -> PanelView:
    columns = list(dict.fromkeys(cell.column_label for cell in panel.cells))
    names = _column_names(columns, methods)
    pictures = {
        (cell.row_label, cell.column_label): encode(
            cell.picture, f"{panel.title}: {cell.row_label}, {_name(cell.column_label, methods)}", quality, side
        )
        for cell in panel.cells
    }
    rows = tuple(
        (row, tuple(pictures.get((row, column)) for column in columns))
        for row in dict.fromkeys(cell.row_label for cell in panel.cells)
    )
    image = encode(panel.image, f"{panel.title}: the image that was given", quality, side)
    marked = columns.index(best) if best in columns else None
    return PanelView(panel.title, image, tuple(names.values()), marked, rows)


def _name(label: str, methods: Sequence[str]) -> str:
    return describe(label).name if label in methods else label


def _column_names(columns: Sequence[str], methods: Sequence[str]) -> dict[str, str]:
    """Readable column labels; where all re-aligned columns share their merge, it is not said each time."""
    texts = {label: describe(label) for label in columns if label in methods}
    shared = len({label.partition("+")[0] for label in texts if "+" in label}) == 1
    names = {label: text.short if shared else text.name for label, text in texts.items()}
    return {label: names.get(label, label) for label in columns}


def _size(view: PanelView) -> int:
    cells = [picture for _, pictures in view.rows for picture in pictures if picture is not None]
    return sum(len(picture.uri) for picture in (view.image, *cells))


def _legend(task: Task) -> Legend | None:
    if isinstance(task, Segmentation):
        return Legend(task.name, "", classes=tuple(zip(task.classes, task.colours, strict=True)))
    if isinstance(task, PositiveMap):
        ramp = torch.linspace(0.0, 1.0, 160).expand(1, 14, 160)
        picture = encode(task.draw(ramp, limits=(0.0, 1.0)), "Colours from low to high values", 95)
        return Legend(task.name, "near to far" if task.near_is_small else "far to near", picture)
    if isinstance(task, Normals):
        picture = encode(_ball(task), "A ball coloured by the direction of its surface", 95)
        return Legend(task.name, f"the directions of a ball's surface: {task.axes}", picture)
    return None


def _ball(task: Normals, size: int = 72) -> Picture:
    """A ball seen from the front in normals' colours, for x right, y down, z towards the viewer."""
    steps = torch.linspace(-1.0, 1.0, size)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    inside = x**2 + y**2 < 1.0
    z = (1.0 - x**2 - y**2).clamp(min=0.0).sqrt()
    drawn = task.draw(torch.stack([x, y, z]))
    return np.where(inside.numpy()[..., None], drawn, np.uint8(255)).astype(np.uint8)
