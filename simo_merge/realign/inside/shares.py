"""What share tasks have in an error that all of them bear, and images in a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from simo_merge.errors import SimoError


def fitted_images(count: int, held_out: float) -> int:
    """How many of the images are fitted to; the last ones, one at least, are held out.

    Raises:
        SimoError: a share that is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise SimoError(f"held_out is a share of the calibration images between 0 and 1, got {held_out}")
    return max(0, count - max(1, round(held_out * count)))


def task_weights(weights: Mapping[str, float] | None, tasks: list[str]) -> dict[str, float]:
    """The weight of every task, 1 in sum.

    Raises:
        SimoError: a task that the model does not have, or weights that are negative or all 0.
    """
    unknown = sorted(set(weights or {}) - set(tasks))
    if unknown:
        raise SimoError(f"weights for unknown tasks {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
    found = {task: float((weights or {}).get(task, 1.0)) for task in tasks}
    total = sum(found.values())
    if not (0 < total < math.inf) or min(found.values()) < 0:
        raise SimoError(f"weights of tasks are 0 or more, and one at least above; got {dict(weights or {})}")
    return {task: weight / total for task, weight in found.items()}
