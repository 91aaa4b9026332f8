"""The contact sheet: some images with every label beside them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from simo_merge.checking.pictures.canvas import FAINT, Canvas, shortened, text_width
from simo_merge.checking.pictures.legend import HEIGHT, class_lines, draw_classes, draw_key, limits_of
from simo_merge.checking.statistics import ClassStatistics, Statistics, spaced
from simo_merge.colours import Picture
from simo_merge.data import DenseDataset, Sample

SHOWN = 6
"""Images on a sheet."""
_MARGIN = 16
_GAP = 8
_WIDEST = 280
_NARROWEST = 130
_SHEET = 1500
_ROW_TEXT = 18


def contact_sheet(dataset: DenseDataset, statistics: Statistics, shown: int = SHOWN) -> Picture:
    """A picture of evenly spaced images and all their labels, with the meaning of the colours.

    Depth and other numbers have one scale for all images, 2 % to 98 % of the values that were counted; dark grey is
    what has no label. Images that could not be read are left out.

    Args:
        dataset: What was checked.
        statistics: What was counted of it.
        shown: How many images.
    """
    samples = _samples(dataset, statistics, shown)
    columns = 1 + len(statistics.tasks)
    width = max(_NARROWEST, min(_WIDEST, (_SHEET - 2 * _MARGIN) // columns - _GAP))
    ratio = samples[0].size[0] / samples[0].size[1] if samples else 1.0
    height = max(8, round(width * ratio))
    total = 2 * _MARGIN + columns * (width + _GAP) - _GAP
    total = max(total, 2 * _MARGIN + round(text_width(_title(statistics, len(samples)), 17)))
    classes = [counted for counted in statistics.labels.values() if isinstance(counted, ClassStatistics)]
    legends = [class_lines(counted, total - 2 * _MARGIN) * 20 + 40 for counted in classes]
    head = _MARGIN + 34 + 20 + HEIGHT
    canvas = Canvas(total, head + len(samples) * (height + _ROW_TEXT + _GAP) + sum(legends) + _MARGIN)
    canvas.text(_MARGIN, _MARGIN, _title(statistics, len(samples)), 17)
    canvas.text(_MARGIN, _MARGIN + 34, "image", 14)
    for column, counted in enumerate(statistics.labels.values(), start=1):
        x = _MARGIN + column * (width + _GAP)
        canvas.text(x, _MARGIN + 34, shortened(counted.task.name, width, 14), 14)
        draw_key(canvas, x, _MARGIN + 54, width, counted)
    for row, sample in enumerate(samples):
        _draw_row(canvas, sample, statistics, head + row * (height + _ROW_TEXT + _GAP), width, height)
    y = head + len(samples) * (height + _ROW_TEXT + _GAP) + 6
    for counted in classes:
        canvas.text(_MARGIN, y, f"classes of {counted.task.name}, with their share of labelled pixels", 14)
        y += draw_classes(canvas, _MARGIN, y + 24, total - 2 * _MARGIN, counted) + 40
    return canvas.pixels()


def _draw_row(canvas: Canvas, sample: Sample, statistics: Statistics, y: int, width: int, height: int) -> None:
    canvas.paste(picture(sample.image), _MARGIN, y, width, height, smooth=True)
    for column, (name, counted) in enumerate(statistics.labels.items(), start=1):
        drawn = counted.task.draw(sample.targets[name], sample.masks[name], limits_of(counted))
        canvas.paste(drawn, _MARGIN + column * (width + _GAP), y, width, height, smooth=False)
    canvas.text(_MARGIN, y + height + 2, shortened(sample.key, canvas.image.width - 2 * _MARGIN, 12), 12, colour=FAINT)


def _samples(dataset: DenseDataset, statistics: Statistics, shown: int) -> Sequence[Sample]:
    readable = [index for index, key in enumerate(dataset.keys) if key not in statistics.unreadable]
    read: list[Sample] = []
    for place in spaced(len(readable), shown) if readable and statistics.images.count else []:
        read.append(dataset[readable[place]])
    return read


def picture(image: Tensor) -> Picture:
    """An image (3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    return (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def _title(statistics: Statistics, shown: int) -> str:
    layout = f", layout {statistics.layout}" if statistics.layout else ""
    return f"{statistics.data} ({statistics.split}{layout}): {shown} of {statistics.total:,} images"
