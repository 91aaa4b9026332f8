"""What an affinity report holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.grouping import Grouping
from simo_merge.affinity.sweep import LambdaSweep
from simo_merge.errors import SimoError


@dataclass(frozen=True)
class AffinityReport:
    """Measures of the affinity of some tasks, and the groupings that follow from them.

    measures: by name, of the same tasks. decision: the groupings by the measure that decides, one for each number of
    encoders, fewest first. opinions: for each other measure its groupings, for the same numbers of encoders. sweep: the
    lambda curves, if they were measured. environment: versions, machine and date. commands: what makes this again.
    about: what each measure says, in a sentence.

    Raises:
        SimoError: no measure, measures of different tasks, or a grouping by a measure that is not there.
    """

    measures: Mapping[str, AffinityMatrix]
    decision: Sequence[Grouping] = ()
    opinions: Mapping[str, Sequence[Grouping]] = field(default_factory=dict)
    sweep: LambdaSweep | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tasks = {matrix.tasks for matrix in self.measures.values()}
        if len(tasks) != 1:
            raise SimoError(f"an affinity report is of one set of tasks, measured at least once; got {len(tasks)} sets")
        unknown = {grouping.measure for grouping in self.decision} | set(self.opinions)
        if unknown - set(self.measures):
            raise SimoError(
                f"groupings by {', '.join(sorted(unknown - set(self.measures)))}, which is not among the measures: "
                f"{', '.join(self.measures)}"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were given."""
        return next(iter(self.measures.values())).tasks

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the environment, every measure, the sweep, the groupings."""
        return {
            "environment": dict(self.environment),
            "tasks": list(self.tasks),
            "measures": {name: matrix.to_json() for name, matrix in self.measures.items()},
            "sweep": None if self.sweep is None else self.sweep.to_json(),
            "groupings": [grouping.to_json() for grouping in self.decision],
            "opinions": {name: [g.to_json() for g in found] for name, found in self.opinions.items()},
        }


def joined(groups: Sequence[Sequence[str]]) -> str:
    """A partition in one line: `depth + normals | segmentation`."""
    return " | ".join(" + ".join(group) for group in groups)
