"""What goes into a report: plain records, filled by whoever ran the pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simo_merge.colours import Picture
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow
from simo_merge.tasks import Task


@dataclass(frozen=True)
class AlignmentRow:
    """How close one model's features are to an expert's, at one tap, on images that were not fitted on.

    Args:
        method: `task-arithmetic` and the like before re-alignment, the whole method name after it.
        task: whose expert the features are compared with.
        tap: where the decoder reads the encoder, as `block 8` (counted from 0).
        cosine_distance: mean over tokens of 1 - cosine, 0 to 2; smaller is closer.
        l1: mean absolute difference; smaller is closer.
        explained_variance: 1 - residual variance / expert's variance; 1 is a perfect match, below 0 is worse
            than predicting the expert's mean.
        cka: linear centred kernel alignment, 0 to 1; 1 for features that are equal up to a turn and a scale.
    """

    method: str
    task: str
    tap: str
    cosine_distance: float
    l1: float
    explained_variance: float
    cka: float = math.nan


@dataclass(frozen=True)
class FeatureCloud:
    """Patches at one tap in a plane: the expert's, the merged encoder's and the re-aligned ones, (n, 2) each.

    Args:
        task: whose expert it is.
        tap: as in `AlignmentRow`.
        expert, merged, aligned: where the same patches lie; aligned is None where the tap has no aligner.
        explained: share of the expert's variance along either direction, 0 to 1.

    Raises:
        SimoError: points that are not (n, 2), or not as many of each.
    """

    task: str
    tap: str
    expert: npt.NDArray[np.float32]
    merged: npt.NDArray[np.float32]
    aligned: npt.NDArray[np.float32] | None
    explained: tuple[float, float]

    def __post_init__(self) -> None:
        for points in (self.expert, self.merged, self.aligned):
            if points is not None and points.shape != (len(self.expert), 2):
                raise SimoError(
                    f"Points of {self.task!r} at {self.tap!r} have shape {points.shape}, expected "
                    f"({len(self.expert)}, 2): a place in the plane for each patch, of all three the same patches."
                )


@dataclass(frozen=True)
class PanelCell:
    """One picture of a panel: the row is a task, the column is where the picture comes from."""

    row_label: str
    column_label: str
    picture: Picture

    def __post_init__(self) -> None:
        _check_picture(self.picture, f"{self.row_label}, {self.column_label}")


@dataclass(frozen=True)
class Panel:
    """One image and everything that was predicted from it."""

    title: str
    image: Picture
    cells: list[PanelCell]

    def __post_init__(self) -> None:
        _check_picture(self.image, self.title)


@dataclass(frozen=True)
class Report:
    """The contents of one report.

    Args:
        title: what the page is called.
        environment: versions, machine and date, as `results.environment()` records them.
        rows: every evaluated model; the row `experts` is what the others are measured against.
        tasks: the tasks of the rows, in the order of the table.
        alignment: distance of features to the experts', before and after re-alignment.
        panels: test images, with the truth.
        photos: images of another kind, without truth.
        timings: (stage, seconds), in the order in which the stages ran.
        notes: whatever a reader must know, one sentence or two each; credits of the pictures belong here.
        verdict: the outcome in one sentence.
        commands: command lines that produce this report again.
        forward_seconds: seconds that one image costs: (all experts one after another, the re-aligned model).
        clouds: distributions of features, by task and tap.
        errors: where in the image features miss the experts', one panel an image; the first may be a mean.
    """

    title: str
    environment: dict[str, str]
    rows: list[ResultRow]
    tasks: list[Task]
    alignment: list[AlignmentRow]
    panels: list[Panel]
    photos: list[Panel]
    timings: list[tuple[str, float]]
    notes: list[str]
    verdict: str
    commands: Sequence[str] = field(default=())
    forward_seconds: tuple[float, float] | None = None
    clouds: Sequence[FeatureCloud] = field(default=())
    errors: Sequence[Panel] = field(default=())


def _check_picture(picture: npt.NDArray[Any], what: str) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise SimoError(
            f"Picture of {what!r} is {picture.dtype} {picture.shape}, expected uint8 (H, W, 3); "
            "tasks draw such pictures with `draw`."
        )
