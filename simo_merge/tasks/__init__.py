"""What one decoder predicts: channels, the activation that makes its output valid, loss, metric, colours.

A task is a frozen pydantic model, so it travels as JSON: `task.model_dump()` out, `parse_task(values)` in.
Losses and metrics see a boolean mask and no sentinel; under autocast both compute in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from simo_merge.errors import SimoError
from simo_merge.tasks.base import Limits, Task
from simo_merge.tasks.maps import Depth, Disparity, Normals, PositiveMap, Regression
from simo_merge.tasks.segmentation import Segmentation

__all__ = [
    "TASK_KINDS",
    "AnyTask",
    "Depth",
    "Disparity",
    "Limits",
    "Normals",
    "PositiveMap",
    "Regression",
    "Segmentation",
    "Task",
    "parse_task",
]

TASK_KINDS: dict[str, type[Task]] = {
    "segmentation": Segmentation,
    "depth": Depth,
    "disparity": Disparity,
    "normals": Normals,
    "regression": Regression,
}
"""Every kind of task by the value of its `kind` field."""

AnyTask = Annotated[Segmentation | Depth | Disparity | Normals | Regression, Field(discriminator="kind")]
"""Type of a task field in another pydantic model."""


def parse_task(values: Mapping[str, Any]) -> Task:
    """The task that `values` describe; the inverse of `task.model_dump()`, also after a trip through JSON.

    Raises:
        SimoError: When `kind` is missing or unknown, or a field of that kind is wrong.
    """
    kind = values.get("kind")
    if kind not in TASK_KINDS:
        raise SimoError(f"task {values.get('name', '?')!r} has kind {kind!r}, expected one of {', '.join(TASK_KINDS)}")
    return TASK_KINDS[kind].model_validate(dict(values))
