"""What share tasks have in an error that all of them bear."""

from __future__ import annotations

import math
from collections.abc import Mapping

from simo_merge.errors import SimoError


def task_weights(weights: Mapping[str, float] | None, tasks: list[str]) -> dict[str, float]:
    """The weight of every task, 1 in sum.

    Raises:
        SimoError: a task that the model does not have, or weights that are negative or all 0.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise SimoError(f"weights are a number for each task, as {{'depth': 2.0}}; got {weights!r}")
    unknown = sorted(set(weights or {}) - set(tasks))
    if unknown:
        raise SimoError(f"weights for unknown tasks {', '.join(unknown)}; the tasks are {', '.join(tasks)}")
    found = {task: float((weights or {}).get(task, 1.0)) for task in tasks}
    total = sum(found.values())
    if not (0 < total < math.inf) or min(found.values()) < 0:
        raise SimoError(f"weights of tasks are 0 or more, and one at least above; got {dict(weights or {})}")
    return {task: weight / total for task, weight in found.items()}


def check_prefix(prefix: float | None) -> None:
    """Refuse what prefix tokens cannot count for.

    Raises:
        SimoError: a number below 0, or one that is not finite.
    """
    if prefix is not None and not 0 <= prefix < math.inf:
        raise SimoError(f"prefix is how many patches a prefix token counts for, 0 or more; got {prefix}")
