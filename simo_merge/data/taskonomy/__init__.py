"""Taskonomy: views of scanned buildings with one label a domain (Zamir et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simo_merge.data.layouts import detect
from simo_merge.data.source import SourceDataset
from simo_merge.data.taskonomy.domains import CLASSES, DOMAINS, Domain
from simo_merge.data.taskonomy.layouts import TASKONOMY_LAYOUTS
from simo_merge.data.taskonomy.source import TaskonomySource
from simo_merge.data.taskonomy.splits import LIMITS, SPLITS

__all__ = [
    "CLASSES",
    "DOMAINS",
    "LIMITS",
    "SPLITS",
    "TASKONOMY_LAYOUTS",
    "Domain",
    "TaskonomySource",
    "taskonomy",
]


def taskonomy(
    root: str | Path,
    split: str | None = None,
    tasks: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
) -> SourceDataset:
    """Taskonomy, in whichever known layout it lies in `root`.

    The tasks are those of `DOMAINS` whose folder is there: `depth` and `depth_euclidean` in metres, `normals`,
    `segmentation` into 17 classes, and maps scaled to about [0, 1]. A view's key is `BUILDING/point_P_view_V`.

    Args:
        root: The folder; `TASKONOMY_LAYOUTS` tells the forms.
        split: A list of buildings, as `tiny/train` (`SPLITS` has all); None takes every building that is there.
        tasks: The tasks to read; None takes all that are there. Those of `simo_merge.data.derived` can be named too.
        layout: Name of the layout, where it is not to be recognised.
        size: Height and width to bring images and labels to; None leaves them as they are, 512 x 512.

    Raises:
        SimoError: no known layout or several, an unknown split or task, no picture of the split, or a building that
            lacks a domain.
    """
    found = detect("taskonomy", Path(root), TASKONOMY_LAYOUTS, layout)
    return SourceDataset(found(Path(root), tasks), split, tasks, size)
