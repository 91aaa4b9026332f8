"""Rows in a results file: each is written as soon as it is there, and a run that was ended goes on with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.recipe import Recipe, Weighted
from bench.shelf import Shelf
from simo_merge.data import parse_spec
from simo_merge.errors import SimoError
from simo_merge.results import PACKAGES, ResultRow, environment, read_results, write_results
from simo_merge.training.config import recipe_hash

_MEASURED_WITH = (*PACKAGES, "cpu", "device", "threads")
"""What has to be the same for all rows of a file: scores depend on the first, seconds on the rest."""


class Rows:
    """The rows of a results file.

    Args:
        path: the file; it is read if it is there.
        device: what the numbers are computed on.
        facts: what else the file's environment says, as which recipe it was.

    Raises:
        SimoError: a file that was made with other versions or on another machine.
    """

    def __init__(self, path: Path, device: Any = "cpu", facts: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.environment = environment(device) | dict(facts or {})
        self.rows: list[ResultRow] = []
        self.refused: list[str] = []
        if path.exists():
            before, self.rows = read_results(path)
            differ = [key for key in _MEASURED_WITH if before.get(key) != self.environment[key]]
            if differ:
                key = differ[0]
                raise SimoError(
                    f"{path} was measured with {key} {before.get(key)}, this run has {self.environment[key]}; numbers "
                    "of both do not belong into one file: choose another --output, or move it away"
                )

    def add(self, key: str, make: Callable[[], ResultRow]) -> None:
        """Make the row of this key and write it, unless it is there; it takes the place of one of another recipe.

        A method that refuses (for two experts only, or a decoder without what it needs) is told and left out.
        """
        if any(row.recipe == key for row in self.rows):
            return
        try:
            row = replace(make(), recipe=key)
        except SimoError as error:
            self.refused.append(str(error))
            print(f"refused: {error}", flush=True)
            return
        self.rows = [other for other in self.rows if _place(other) != _place(row)] + [row]
        write_results(self.path, self.environment, self.rows)
        print(line(row), flush=True)

    def of(self, tasks: Sequence[str] | None = None) -> list[ResultRow]:
        """The rows of these tasks, or all."""
        return [row for row in self.rows if tasks is None or row.tasks == tuple(tasks)]


def row_key(shelf: Shelf, tasks: Sequence[str], **cell: Any) -> str:
    """Hash of all that decides a row: the recipe's common part, the base, the seed, and what the row is.

    Where the data lie is not part of it; which they are is.
    """
    recipe, spec = shelf.recipe, parse_spec(shelf.spec)
    common = {
        "data": {"format": spec.prefix, "options": spec.options, **recipe.data.model_dump(mode="json")},
        "encoder": {**recipe.encoder.model_dump(mode="json"), "base": shelf.base.sha256},
        "measured": [recipe.protocol, recipe.batch_size, shelf.precision],
        "training": recipe.training,
        "tasks": list(tasks),
        "seed": shelf.seed,
    }
    return recipe_hash(common | {"row": cell})


def joint_cell(recipe: Recipe, row: Weighted, **more: Any) -> dict[str, Any]:
    """What decides a row of joint training, beside the common part."""
    return {"joint": row.model_dump(mode="json"), "joint_training": recipe.joint.training, **more}


def line(row: ResultRow) -> str:
    """What is printed of a row."""
    name = f"{row.method} ({len(row.tasks)} tasks, {row.images} images, {row.labels} labels, {row.steps} steps)"
    return f"seed {row.seed}  {name:<90} {row.delta_ratio:+7.2f} %  {row.fit_seconds:8.1f} s"


def _place(row: ResultRow) -> tuple[Any, ...]:
    """Two rows of one place cannot stand in one table: the newer one replaces the older."""
    fitted_to = row.options.get("fitted_to")
    return row.method, row.data, row.split, row.protocol, row.tasks, row.seed, row.steps, fitted_to
