"""What every affinity measure gives: a number for every pair of tasks, and where it comes from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.results import replace_text

Needs = Literal["weights", "images", "labels"]
MODULE = "module "
"""What names of a profile that are kinds of modules begin with."""
_ROUNDING = 1e-9  # of the largest value: what computing [s, t] and [t, s] apart may differ by


@dataclass(frozen=True, eq=False)
class AffinityMatrix:
    """How well pairs of tasks go together by one measure; larger is better to share an encoder.

    name: the measure's name. tasks: T names.
    values: (T, T) float64; [s, t] is what task s is to task t. NaN: not measured, or not defined.
    symmetric: whether [s, t] = [t, s] by definition.
    needs: the most that the measure had to be given.
    profile: for each layer its own (T, T): what comes before the blocks, the blocks (`block 3`, as taps count them) and
        what comes after, in order, then kinds of modules over all blocks (`module attn.qkv`); empty where the measure
        has no layers. `layers` and `modules` give the two apart.
    alone: what an encoder of its own is worth to a task; None: its own entry, as of a cosine or a delta.
    images, labels: how many images it looked at, and how many of them with labels.
    seconds: what it took; a pass that several measures share counts for the first of them.

    Raises:
        SimoError: fewer than two tasks or one twice, values of another shape, infinite values, or values that are
            called symmetric and are not.
    """

    name: str
    tasks: tuple[str, ...]
    values: Tensor
    symmetric: bool
    needs: Needs
    profile: Mapping[str, Tensor] = field(default_factory=dict)
    images: int = 0
    labels: int = 0
    seconds: float = 0.0
    alone: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise SimoError(f"{self.name}: affinity takes two tasks or more, each once; got {', '.join(self.tasks)}")
        if self.needs not in get_args(Needs):
            raise SimoError(f"{self.name}: needs is {self.needs!r}, expected one of {', '.join(get_args(Needs))}")
        object.__setattr__(self, "values", self._checked(self.values, "values"))
        profile = {layer: self._checked(part, f"the profile at {layer}") for layer, part in self.profile.items()}
        object.__setattr__(self, "profile", profile)

    def _checked(self, values: Tensor, what: str) -> Tensor:
        wide = values.detach().to("cpu", torch.float64)
        count = len(self.tasks)
        if wide.shape != (count, count):
            raise SimoError(f"{self.name}: {what} of shape {tuple(wide.shape)}, expected {(count, count)}: a pair each")
        if wide.isinf().any():
            raise SimoError(f"{self.name}: {what} hold infinity; what is not defined is NaN")
        if self.symmetric:
            room = _ROUNDING * max(1.0, float(wide.nan_to_num().abs().max()))
            if not torch.allclose(wide, wide.T, rtol=0, atol=room, equal_nan=True):
                raise SimoError(f"{self.name}: {what} differ between [s, t] and [t, s], but are called symmetric")
        return wide

    @property
    def layers(self) -> dict[str, Tensor]:
        """The profile over depth."""
        return {name: values for name, values in self.profile.items() if not name.startswith(MODULE)}

    @property
    def modules(self) -> dict[str, Tensor]:
        """The profile over kinds of modules, by their names alone."""
        return {n.removeprefix(MODULE): values for n, values in self.profile.items() if n.startswith(MODULE)}

    def of(self, source: str, target: str) -> float:
        """What task `source` is to task `target`.

        Raises:
            SimoError: a task that was not measured.
        """
        return float(self.values[self._index(source), self._index(target)])

    def mutual(self) -> Tensor:
        """(T, T) symmetric: the mean of [s, t] and [t, s], NaN where either is."""
        return (self.values + self.values.T) / 2

    def _index(self, task: str) -> int:
        if task not in self.tasks:
            raise SimoError(f"{self.name}: no task {task!r}; measured were {', '.join(self.tasks)}")
        return self.tasks.index(task)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: matrices as lists of rows, NaN as null."""
        return {
            "name": self.name,
            "tasks": list(self.tasks),
            "symmetric": self.symmetric,
            "needs": self.needs,
            "images": self.images,
            "labels": self.labels,
            "alone": self.alone,
            "seconds": round(self.seconds, 4),
            "values": _rows(self.values),
            "profile": {layer: _rows(values) for layer, values in self.profile.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AffinityMatrix:
        """The matrix that `to_json` wrote.

        Raises:
            SimoError: a field that is missing, unknown or of another form.
        """
        fields = set(cls.__dataclass_fields__)
        if set(record) - fields or not {*_REQUIRED} <= set(record):
            raise SimoError(
                f"this is no affinity matrix: it has {', '.join(record)}; expected {', '.join(sorted(fields))}"
            )
        try:
            values = _tensor(record["values"])
            profile = {layer: _tensor(rows) for layer, rows in record.get("profile", {}).items()}
            rest = {key: record[key] for key in record if key not in ("values", "profile", "tasks")}
            return cls(values=values, profile=profile, tasks=tuple(record["tasks"]), **rest)
        except (TypeError, ValueError, AttributeError) as error:
            raise SimoError(f"affinity matrix {record['name']!r} cannot be read: {error}") from error

    def to_csv(self) -> str:
        """A row for every pair and layer: source, target, layer ("" for the whole), value ("" for NaN)."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("source", "target", "layer", "value"))
        for layer, values in {"": self.values, **self.profile}.items():
            for source, row in zip(self.tasks, _rows(values), strict=True):
                for target, value in zip(self.tasks, row, strict=True):
                    table.writerow((source, target, layer, "" if value is None else repr(value)))
        return text.getvalue()

    def save_csv(self, path: str | Path) -> None:
        """Write `to_csv` to a file, whole or not at all."""
        replace_text(Path(path), self.to_csv())


_REQUIRED = ("name", "tasks", "values", "symmetric", "needs")


def _rows(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]


def _tensor(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor([[math.nan if value is None else value for value in row] for row in rows], dtype=torch.float64)
